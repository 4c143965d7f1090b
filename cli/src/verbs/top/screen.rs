//! The terminal of `top`: on its alternate screen and in raw mode, and restored on every way out.

use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};
use tokio::sync::mpsc;

use super::snapshot::Dashboard;
use super::view;

/// How many keys may wait to be handled; a person does not type faster.
const KEYS_MAX: usize = 32;
/// How many problems are shown.
const PROBLEM_LINES_MAX: usize = 4;
/// How many lines of queues, and of jobs, are shown, headings included; workers get the rest.
const PART_LINES_MAX: usize = 8;
const HELP: &str = "q quits | arrows, PgUp, PgDn scroll the workers";

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyAction {
    Quit,
    Up(usize),
    Down(usize),
    Draw,
}

/// The terminal while `top` has it.
pub struct Screen {
    terminal: DefaultTerminal,
    keys: mpsc::Receiver<KeyAction>,
    /// How many lines of workers are scrolled away above the first that is shown.
    scrolled: usize,
}

impl Screen {
    /// Takes the terminal. A panic restores it, too.
    ///
    /// # Errors
    /// When standard output is not a terminal.
    pub fn open() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore());
        let terminal = terminal.context("the terminal cannot be used; `millpond top --once` needs none")?;
        let (actions, keys) = mpsc::channel(KEYS_MAX);
        // A plain thread, because a blocking read on the runtime would delay its shutdown.
        std::thread::spawn(move || {
            while let Ok(event) = event::read() {
                let Some(action) = action(&event) else { continue };
                if actions.blocking_send(action).is_err() {
                    break;
                }
            }
        });
        Ok(Self { terminal, keys, scrolled: 0 })
    }

    /// Handles the next key; false when it quits.
    ///
    /// # Cancel safety
    /// Safe: a key is handled, or it still waits.
    pub async fn key(&mut self) -> bool {
        match self.keys.recv().await {
            None | Some(KeyAction::Quit) => return false,
            Some(KeyAction::Up(lines)) => self.scrolled = self.scrolled.saturating_sub(lines),
            Some(KeyAction::Down(lines)) => self.scrolled = self.scrolled.saturating_add(lines),
            Some(KeyAction::Draw) => {}
        }
        true
    }

    /// Draws the dashboard.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn draw(&mut self, dashboard: &Dashboard) -> anyhow::Result<()> {
        let scrolled = &mut self.scrolled;
        self.terminal.draw(|frame| draw(frame, dashboard, scrolled)).context("the terminal cannot be written")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn action(event: &Event) -> Option<KeyAction> {
    let key = match event {
        Event::Resize(..) => return Some(KeyAction::Draw),
        Event::Key(key @ KeyEvent { kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) => key,
        _ => return None,
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(KeyAction::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(KeyAction::Quit),
        KeyCode::Up => Some(KeyAction::Up(1)),
        KeyCode::Down => Some(KeyAction::Down(1)),
        KeyCode::PageUp => Some(KeyAction::Up(10)),
        KeyCode::PageDown => Some(KeyAction::Down(10)),
        KeyCode::Home => Some(KeyAction::Up(usize::MAX)),
        KeyCode::End => Some(KeyAction::Down(usize::MAX)),
        _ => None,
    }
}

fn draw(frame: &mut Frame, dashboard: &Dashboard, scrolled: &mut usize) {
    let mut warnings = view::problems(dashboard);
    let hidden = warnings.len().saturating_sub(PROBLEM_LINES_MAX);
    warnings.truncate(PROBLEM_LINES_MAX);
    warnings.extend((hidden > 0).then(|| format!("! and {hidden} more (the console shows all)")));
    warnings.extend(view::away(dashboard));
    let (queues, workers, jobs) = (view::queues(dashboard), view::workers(dashboard), view::jobs(dashboard));
    let height = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1 + height(warnings.len())),
        Constraint::Length(1 + height(queues.len().min(PART_LINES_MAX))),
        Constraint::Min(3),
        Constraint::Length(1 + height(jobs.len().min(PART_LINES_MAX))),
        Constraint::Length(1),
    ]);
    let [top, of_queues, of_workers, of_jobs, bottom] = areas.areas(frame.area());
    let mut header = vec![Line::styled(view::header(dashboard), Style::new().add_modifier(Modifier::BOLD))];
    header.extend(warnings.into_iter().map(|warning| Line::styled(warning, Style::new().fg(Color::Red))));
    frame.render_widget(Paragraph::new(header), top);
    part(frame, of_queues, queues, 0);
    let visible = usize::from(of_workers.height).saturating_sub(2);
    *scrolled = (*scrolled).min(workers.len().saturating_sub(1).saturating_sub(visible));
    part(frame, of_workers, workers, *scrolled);
    part(frame, of_jobs, jobs, 0);
    frame.render_widget(Line::styled(HELP, Style::new().add_modifier(Modifier::DIM)), bottom);
}

/// Draws a blank line, the heading, and the lines below those that are scrolled away.
fn part(frame: &mut Frame, area: Rect, lines: Vec<String>, scrolled: usize) {
    let styled = lines.into_iter().enumerate().filter(|(n, _)| *n == 0 || *n > scrolled).map(|(n, line)| {
        let style = if n == 0 { Style::new().add_modifier(Modifier::REVERSED) } else { style(&line) };
        Line::styled(line, style)
    });
    let lines: Vec<Line> = std::iter::once(Line::default()).chain(styled).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// The style of a line, by the state in its second column.
fn style(line: &str) -> Style {
    match line.split_whitespace().nth(1) {
        Some("lost" | "stalled") => Style::new().fg(Color::Red),
        Some("draining" | "stopping" | "starting") => Style::new().fg(Color::Yellow),
        Some("busy") => Style::new().fg(Color::Green),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::super::super::worker::list::tests::worker;
    use super::super::snapshot::tests::snapshot;
    use super::*;

    #[test]
    fn workers_scroll_within_their_part_and_the_heading_stays() {
        let many = (0..50).map(|n| worker(json!({ "name": format!("w{n:02}") }))).collect();
        let mut dashboard = Dashboard::default();
        dashboard.add(Ok(snapshot(many, json!([]), json!([]))));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let mut scrolled = usize::MAX;
        terminal.draw(|frame| draw(frame, &dashboard, &mut scrolled)).unwrap();
        let shown = terminal.backend().to_string();
        assert!(shown.contains("WORKER") && shown.contains("w49") && !shown.contains("w00"), "{shown}");
        assert!(scrolled < 50, "it scrolls no further than to the last");
        assert!(shown.contains("workers 50 live") && shown.contains(HELP), "{shown}");
    }

    #[test]
    fn keys() {
        let key = |code, modifiers| action(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(KeyAction::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(KeyAction::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(key(KeyCode::PageDown, KeyModifiers::NONE), Some(KeyAction::Down(10)));
    }
}

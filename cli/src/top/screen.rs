//! The terminal of `top`: drawn on its other page, in raw mode, and given back as it was on every way out.

use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};
use tokio::sync::mpsc;

use super::sample::History;
use super::view;

/// Keys that wait to be looked at, at the most; a person does not type faster.
const KEYS_MAX: usize = 32;
/// Problems that are shown.
const PROBLEM_LINES_MAX: usize = 4;
/// Lines of queues and of jobs that are shown at the most, headings included; workers get the rest.
const PART_LINES_MAX: usize = 8;
const HELP: &str = "q quits | arrows, PgUp, PgDn scroll the workers";

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Quit,
    Up(usize),
    Down(usize),
    Draw,
}

/// The terminal while `top` has it.
pub struct Screen {
    terminal: DefaultTerminal,
    keys: mpsc::Receiver<Ask>,
    /// Lines of workers above the first that is shown.
    scrolled: usize,
}

impl Screen {
    /// Takes the terminal; a panic gives it back, too.
    ///
    /// # Errors
    /// When it is none.
    pub fn open() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore());
        let terminal = terminal.context("the terminal cannot be used; `millpond top --once` needs none")?;
        let (tell, keys) = mpsc::channel(KEYS_MAX);
        // A plain thread: a blocking read would hold back the runtime's shutdown.
        std::thread::spawn(move || {
            while let Ok(event) = event::read() {
                let Some(ask) = meaning(&event) else { continue };
                if tell.blocking_send(ask).is_err() {
                    break;
                }
            }
        });
        Ok(Self { terminal, keys, scrolled: 0 })
    }

    /// Does what the next key asks for; false when it is to end.
    ///
    /// # Cancel safety
    /// Safe: a key is taken or it waits.
    pub async fn key(&mut self) -> bool {
        match self.keys.recv().await {
            None | Some(Ask::Quit) => return false,
            Some(Ask::Up(lines)) => self.scrolled = self.scrolled.saturating_sub(lines),
            Some(Ask::Down(lines)) => self.scrolled = self.scrolled.saturating_add(lines),
            Some(Ask::Draw) => {}
        }
        true
    }

    /// Shows what was seen.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn draw(&mut self, history: &History) -> anyhow::Result<()> {
        let scrolled = &mut self.scrolled;
        self.terminal.draw(|frame| draw(frame, history, scrolled)).context("the terminal cannot be written")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn meaning(event: &Event) -> Option<Ask> {
    let key = match event {
        Event::Resize(..) => return Some(Ask::Draw),
        Event::Key(key @ KeyEvent { kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) => key,
        _ => return None,
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Ask::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Ask::Quit),
        KeyCode::Up => Some(Ask::Up(1)),
        KeyCode::Down => Some(Ask::Down(1)),
        KeyCode::PageUp => Some(Ask::Up(10)),
        KeyCode::PageDown => Some(Ask::Down(10)),
        KeyCode::Home => Some(Ask::Up(usize::MAX)),
        KeyCode::End => Some(Ask::Down(usize::MAX)),
        _ => None,
    }
}

fn draw(frame: &mut Frame, history: &History, scrolled: &mut usize) {
    let mut troubles = view::problems(history);
    let hidden = troubles.len().saturating_sub(PROBLEM_LINES_MAX);
    troubles.truncate(PROBLEM_LINES_MAX);
    troubles.extend((hidden > 0).then(|| format!("! and {hidden} more (the console shows all)")));
    troubles.extend(view::trouble(history));
    let (queues, workers, jobs) = (view::queues(history), view::workers(history), view::jobs(history));
    let height = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1 + height(troubles.len())),
        Constraint::Length(1 + height(queues.len().min(PART_LINES_MAX))),
        Constraint::Min(3),
        Constraint::Length(1 + height(jobs.len().min(PART_LINES_MAX))),
        Constraint::Length(1),
    ]);
    let [top, of_queues, of_workers, of_jobs, bottom] = areas.areas(frame.area());
    let mut header = vec![Line::styled(view::header(history), Style::new().add_modifier(Modifier::BOLD))];
    header.extend(troubles.into_iter().map(|trouble| Line::styled(trouble, Style::new().fg(Color::Red))));
    frame.render_widget(Paragraph::new(header), top);
    part(frame, of_queues, queues, 0);
    let room = usize::from(of_workers.height).saturating_sub(2);
    *scrolled = (*scrolled).min(workers.len().saturating_sub(1).saturating_sub(room));
    part(frame, of_workers, workers, *scrolled);
    part(frame, of_jobs, jobs, 0);
    frame.render_widget(Line::styled(HELP, Style::new().add_modifier(Modifier::DIM)), bottom);
}

/// A blank line, the heading, and the lines behind those that are scrolled away.
fn part(frame: &mut Frame, area: Rect, lines: view::Lines, scrolled: usize) {
    let styled = lines.into_iter().enumerate().filter(|(n, _)| *n == 0 || *n > scrolled).map(|(n, line)| {
        let style = if n == 0 { Style::new().add_modifier(Modifier::REVERSED) } else { style(&line) };
        Line::styled(line, style)
    });
    let lines: Vec<Line> = std::iter::once(Line::default()).chain(styled).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// By the state that stands in a line's second column.
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

    use super::super::sample::tests::seen;
    use super::*;

    #[test]
    fn workers_scroll_within_their_room_and_the_heading_stays() {
        let many: Vec<_> = (0..50).map(|n| json!({ "name": format!("w{n:02}"), "state": "live" })).collect();
        let mut history = History::default();
        history.add(Ok(seen(json!(many), json!([]), json!([]))));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let mut scrolled = usize::MAX;
        terminal.draw(|frame| draw(frame, &history, &mut scrolled)).unwrap();
        let shown = terminal.backend().to_string();
        assert!(shown.contains("WORKER") && shown.contains("w49") && !shown.contains("w00"), "{shown}");
        assert!(scrolled < 50, "it scrolls no further than to the last");
        assert!(shown.contains("workers 50 live") && shown.contains(HELP), "{shown}");
    }

    #[test]
    fn keys() {
        let key = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Ask::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Ask::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(key(KeyCode::PageDown, KeyModifiers::NONE), Some(Ask::Down(10)));
    }
}

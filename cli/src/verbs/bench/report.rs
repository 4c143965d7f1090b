//! Medians, spreads and ratios of the measurements.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Used;
use crate::output::output;

/// One round of one kind.
pub(super) struct Round {
    pub(super) kind: &'static str,
    pub(super) tasks: u64,
    pub(super) took: Duration,
    /// Single round trips.
    pub(super) trips: Vec<Duration>,
    /// How long after the last result the collector had stored everything.
    pub(super) stored_after: Duration,
}

/// All measurements.
pub(super) struct BenchReport {
    idle: BTreeMap<String, (Used, f64)>,
    last: BTreeMap<String, Used>,
    rounds: Vec<(Round, BTreeMap<String, f64>)>,
}

/// Median, least and most.
#[derive(Clone, Copy)]
pub(super) struct Spread {
    pub(super) median: f64,
    min: f64,
    max: f64,
}

pub(super) fn spread(values: impl IntoIterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    let half = values.len() / 2;
    let median =
        if values.len().is_multiple_of(2) && half > 0 { f64::midpoint(at(half - 1), at(half)) } else { at(half) };
    Spread { median, min: at(0), max: at(values.len().saturating_sub(1)) }
}

impl Spread {
    pub(super) fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }

    pub(super) fn text(self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

fn percentile_ms(trips: &[Duration], percent: usize) -> f64 {
    let mut trips: Vec<f64> = trips.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    trips.sort_by(f64::total_cmp);
    trips.get((trips.len() * percent / 100).min(trips.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

impl BenchReport {
    pub(super) fn new(before: &BTreeMap<String, Used>, after: &BTreeMap<String, Used>, idle: Duration) -> Self {
        let share = |name: &str, used: &Used| {
            let cpu_s = used.cpu_s - before.get(name).map_or(0.0, |b| b.cpu_s);
            100.0 * cpu_s / idle.as_secs_f64()
        };
        let idle = after.iter().map(|(name, used)| (name.clone(), (*used, share(name, used))));
        Self { idle: idle.collect(), last: BTreeMap::new(), rounds: Vec::new() }
    }

    pub(super) fn add(&mut self, round: Round, before: &BTreeMap<String, Used>, after: &BTreeMap<String, Used>) {
        let cpu = after.iter().map(|(name, used)| {
            let cpu_s = used.cpu_s - before.get(name).map_or(0.0, |b| b.cpu_s);
            (name.clone(), cpu_s * 1e6 / float(round.tasks))
        });
        let cpu = cpu.collect();
        self.rounds.push((round, cpu));
        self.last.clone_from(after);
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &(Round, BTreeMap<String, f64>)> {
        self.rounds.iter().filter(move |(round, _)| round.kind == kind)
    }

    /// A figure of each round of a kind.
    fn each(&self, kind: &str, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.of(kind).map(|(round, _)| figure(round)).collect()
    }

    fn rates(&self, kind: &str) -> Vec<f64> {
        self.each(kind, |r| float(r.tasks) / r.took.as_secs_f64())
    }

    fn trips(&self, kind: &str, percent: usize) -> Vec<f64> {
        self.each(kind, |r| percentile_ms(&r.trips, percent))
    }

    /// The ratio of two figures in each round.
    fn ratio(of: &[f64], to: &[f64]) -> Spread {
        spread(of.iter().zip(to).map(|(of, to)| of / to))
    }

    fn targets(&self) -> [(&'static str, Spread, &'static str); 3] {
        let rates = |kind| self.rates(kind);
        [
            ("one task per message, to the raw ceiling", Self::ratio(&rates("single"), &rates("raw")), "at least 0.75"),
            ("automatic batches, to one task per message", Self::ratio(&rates("auto"), &rates("single")), "at least 8"),
            (
                "lone round trip p50, to raw",
                Self::ratio(&self.trips("lone", 50), &self.trips("raw_lone", 50)),
                "at most 1.4",
            ),
        ]
    }

    /// The CPU time of a task in each process, in microseconds: medians.
    fn cpu(&self, kind: &str) -> BTreeMap<String, f64> {
        let names = self.last.keys();
        let median = |name: &String| spread(self.of(kind).filter_map(|(_, cpu)| cpu.get(name).copied())).median;
        names.map(|name| (name.clone(), median(name))).collect()
    }

    pub(super) fn print(&self, as_json: bool) -> std::io::Result<()> {
        let mut out = output();
        if as_json {
            return writeln!(out, "{}", self.json());
        }
        writeln!(out, "\n{:<28} {:<32} CPU us/task", "", "tasks/s: median (min-max)")?;
        for (name, kind) in
            [("(a) raw ceiling", "raw"), ("(b) one task per message", "single"), ("(c) automatic batches", "auto")]
        {
            let cpu: Vec<String> =
                self.cpu(kind).iter().filter(|(_, us)| **us >= 0.05).map(|(n, us)| format!("{n} {us:.1}")).collect();
            writeln!(out, "{name:<28} {:<32} {}", spread(self.rates(kind)).text(0), cpu.join("  "))?;
        }
        writeln!(out, "\n{:<28} {:<32} p99", "", "ms: p50")?;
        for (name, kind) in [("(d) lone, raw", "raw_lone"), ("    lone, millpond", "lone")] {
            let (p50, p99) = (spread(self.trips(kind, 50)), spread(self.trips(kind, 99)));
            writeln!(out, "{name:<28} {:<32} {}", p50.text(3), p99.text(3))?;
        }
        writeln!(out, "\n{:<46} {:<26} goal", "ratio, round by round", "median (min-max)")?;
        for (name, ratio, goal) in self.targets() {
            writeln!(out, "{name:<46} {:<26} {goal}", ratio.text(2))?;
        }
        writeln!(out, "\n{:<16} {:>10} {:>14} {:>16}", "process", "idle CPU %", "idle RSS MiB", "RSS at the end")?;
        let mib = |bytes: u64| float(bytes) / 1024.0 / 1024.0;
        let mut sum = 0.0;
        for (name, (used, share)) in self.idle.iter().filter(|(name, _)| *name != "bench") {
            sum += share;
            let end = self.last.get(name).map_or(0.0, |u| mib(u.rss));
            writeln!(out, "{name:<16} {share:>10.2} {:>14.1} {end:>16.1}", mib(used.rss))?;
        }
        writeln!(out, "{:<16} {sum:>10.2}", "all")?;
        let stored = |kind| spread(self.each(kind, |r| r.stored_after.as_secs_f64())).text(2);
        writeln!(
            out,
            "\nthe collector had stored all of a round {} s after its last result, {} s with batches",
            stored("single"),
            stored("auto")
        )
    }

    fn json(&self) -> Value {
        let kinds = ["raw", "single", "auto"].map(|kind| {
            let figures = json!({ "tasks_per_s": spread(self.rates(kind)).json(), "cpu_us_per_task": self.cpu(kind) });
            (kind.to_owned(), figures)
        });
        let lone = ["raw_lone", "lone"].map(|kind| {
            let (p50, p99) = (spread(self.trips(kind, 50)).json(), spread(self.trips(kind, 99)).json());
            (kind.to_owned(), json!({ "p50_ms": p50, "p99_ms": p99 }))
        });
        let ratios =
            self.targets().map(|(name, ratio, goal)| json!({ "name": name, "ratio": ratio.json(), "goal": goal }));
        let idle = self
            .idle
            .iter()
            .map(|(name, (used, share))| (name.clone(), json!({ "cpu_percent": share, "rss_bytes": used.rss })));
        json!({
            "rates": serde_json::Map::from_iter(kinds), "lone": serde_json::Map::from_iter(lone), "ratios": ratios,
            "idle": serde_json::Map::from_iter(idle),
        })
    }
}

//! What is printed at the end: requirement, bar, figure, verdict.

use std::fmt;
use std::time::Duration;

pub(crate) struct Table {
    quick: bool,
    /// Share of the cores' time that went to other work before the start.
    busy: f64,
    part: String,
    rows: Vec<Row>,
}

/// Beyond it the table says so.
const BUSY_MAX: f64 = 0.1;

struct Row {
    part: String,
    what: String,
    bar: String,
    figure: String,
    /// `None`: said for information.
    holds: Option<bool>,
}

impl Table {
    pub(crate) fn new(quick: bool, busy: f64) -> Self {
        Self { quick, busy, part: String::new(), rows: Vec::new() }
    }

    pub(crate) fn begin(&mut self, part: &str) {
        part.clone_into(&mut self.part);
    }

    pub(crate) fn row(&mut self, what: &str, bar: impl Into<String>, figure: impl Into<String>, holds: bool) {
        self.push(what, bar.into(), figure.into(), Some(holds));
    }

    /// A figure without a bar, to understand the others by.
    pub(crate) fn note(&mut self, what: &str, figure: impl Into<String>) {
        self.push(what, String::new(), figure.into(), None);
    }

    pub(crate) fn all_hold(&self) -> bool {
        self.rows.iter().all(|row| row.holds != Some(false))
    }

    fn push(&mut self, what: &str, bar: String, figure: String, holds: Option<bool>) {
        // A row is a line.
        let figure = figure.trim().replace('\n', " ").replace('|', "/");
        eprintln!("   {what}: {figure}{}", if holds == Some(false) { "  <- FAILS" } else { "" });
        self.rows.push(Row { part: self.part.clone(), what: what.to_owned(), bar, figure, holds });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.quick {
            writeln!(f, "A rehearsal (NEXUS_LOAD_QUICK): shorter than the requirements ask for.\n")?;
        }
        if self.busy > BUSY_MAX {
            writeln!(
                f,
                "Other work took {:.0}% of the cores before the start: times are its, too.\n",
                self.busy * 100.0
            )?;
        }
        writeln!(f, "| part | what | bar | measured | |\n|---|---|---|---|---|")?;
        for Row { part, what, bar, figure, holds } in &self.rows {
            let verdict = match holds {
                Some(true) => "pass",
                Some(false) => "**FAIL**",
                None => "",
            };
            writeln!(f, "| {part} | {what} | {bar} | {figure} | {verdict} |")?;
        }
        let failed = self.rows.iter().filter(|row| row.holds == Some(false)).count();
        let judged = self.rows.iter().filter(|row| row.holds.is_some()).count();
        write!(f, "\n{} of {judged} hold.", judged - failed)
    }
}

/// The value below which `share` of them lie: exact, of all samples. `None` where there are none.
pub(crate) fn quantile(samples: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    // Nearest rank: the smallest value with at least that share at or below it.
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

pub(crate) fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

pub(crate) fn ms_or_none(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "no sample".to_owned(), ms)
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

//! Waiting until models are loaded, in sight of the user.

use super::Failure;
use crate::terminal::bar;
use indicatif::ProgressBar;
use nexus_engine::{ModelState, Models};
use std::io::IsTerminal as _;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// On a terminal, where bars move.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Elsewhere, where each report is a line of the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Shows how far loading is, until it has come to an end: a bar for each model on a terminal, a line every ten seconds
/// elsewhere.
pub(super) async fn watch(models: &Models) {
    let terminal = std::io::stderr().is_terminal();
    let mut bars: [Option<ProgressBar>; 2] = [None, None];
    loop {
        // The first line comes when something has taken long; what is loaded by then needs none.
        tokio::time::sleep(if terminal { DRAW_EVERY } else { TELL_EVERY }).await;
        let mut loading = false;
        for (status, shown) in models.status().into_iter().zip(&mut bars) {
            let model = status.role.name();
            match status.state {
                ModelState::Loading { stage, bytes_done, bytes_total } => {
                    loading = true;
                    // Some stages do not know how much there is to do.
                    let known = bytes_total > 0;
                    if !terminal {
                        let (done, total) = (known.then_some(bytes_done), known.then_some(bytes_total));
                        tracing::info!(model, stage, bytes_done = done, bytes_total = total, "loading");
                        continue;
                    }
                    if known {
                        let template = "{msg:30} [{bar:30}] {bytes} of {total_bytes}";
                        let shown = shown.get_or_insert_with(|| bar("", 0, template));
                        shown.set_length(bytes_total);
                        shown.set_position(bytes_done);
                    }
                    if let Some(shown) = shown {
                        shown.set_message(format!("{model}: {stage}"));
                    }
                }
                ModelState::Ready | ModelState::Failed { .. } => {
                    if let Some(shown) = shown.take() {
                        shown.finish_and_clear();
                    }
                }
            }
        }
        if !loading {
            return;
        }
    }
}

/// Waits for both models.
pub(super) async fn wait(models: &Models) -> Result<(), Failure> {
    let progress = bar("loading models", 0, "{msg} [{bar:30}] {bytes} of {total_bytes}");
    loop {
        let (mut done, mut total, mut loading) = (0, 0, false);
        for status in models.status() {
            match status.state {
                ModelState::Ready => {}
                ModelState::Loading { bytes_done, bytes_total, .. } => {
                    loading = true;
                    done += bytes_done;
                    total += bytes_total;
                }
                ModelState::Failed { reason } => {
                    progress.finish_and_clear();
                    return Err(Failure::Run(format!("the {} failed to load: {reason}", status.role.name())));
                }
            }
        }
        if !loading {
            progress.finish_and_clear();
            return Ok(());
        }
        progress.set_length(total);
        progress.set_position(done);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

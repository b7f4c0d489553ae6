//! Waiting until models are loaded, in sight of the user.

use super::Failure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nexus_engine::{ModelState, Models};
use std::borrow::Cow;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A bar on standard error, which draws nothing unless that is a terminal.
pub(super) fn bar(label: impl Into<Cow<'static, str>>, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(label);
    bar
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

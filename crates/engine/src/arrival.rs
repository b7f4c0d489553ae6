//! Models that are loaded while their files arrive: what is told meanwhile, and what comes of it in the end.
//!
//! Only the end of the transfer tells whether the files belong together. Whatever came of a model before, good or bad,
//! counts if they do; where the source changed meanwhile, it is opened again.

use crate::{BoxError, ModelSource, OpenedModel, Progress};
use std::{
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// Times that a model is opened because its source changed.
const OPENINGS_MAX: u32 = 4;
/// How often it is told how far the transfer is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// The transfer of files that are still on their way when a model is opened.
pub trait Arrival: Send + Sync {
    /// Bytes that are here, and bytes of the model; `None` once the transfer has ended.
    fn bytes(&self) -> Option<(u64, u64)>;

    /// Waits for the end of the transfer, and says whether what was opened is what the source has. If not, opening it
    /// again gives that.
    ///
    /// # Errors
    ///
    /// What ended the transfer early.
    fn settle(&self) -> Result<bool, BoxError>;
}

/// Opens a model and does `work` with it; again where it turns out that the source changed meanwhile.
pub(crate) fn with_opened<T>(
    source: &ModelSource,
    progress: Progress<'_>,
    work: impl Fn(OpenedModel, Progress<'_>) -> Result<T, BoxError>,
) -> Result<T, BoxError> {
    for _ in 0..OPENINGS_MAX {
        let mut opened = (source.open)(progress)?;
        let Some(arrival) = opened.arrival.take() else { return work(opened, progress) };
        let (outcome, settled) = while_arriving(&*arrival, progress, |progress| {
            let outcome = work(opened, progress);
            (outcome, arrival.settle())
        });
        if settled? {
            return outcome;
        }
        tracing::info!(model = source.name, "the model changed while it was loaded: loading what it is now");
    }
    Err("the model changed each time while it was loaded; start or reload when its upload is complete".into())
}

/// Does `work`, and tells how far the transfer is as long as it goes on; after that, what `work` tells.
fn while_arriving<T>(arrival: &dyn Arrival, progress: Progress<'_>, work: impl FnOnce(Progress<'_>) -> T) -> T {
    let (working, worked) = mpsc::channel::<()>();
    // Held while something is looked up and told, so that what is told last is so.
    let telling = Mutex::new(());
    let hold = || telling.lock().unwrap_or_else(PoisonError::into_inner);
    let of_work = |stage, done, total| {
        let _held = hold();
        if arrival.bytes().is_none() {
            progress(stage, done, total);
        }
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                let held = hold();
                let Some((done, total)) = arrival.bytes() else { return };
                progress("fetching", done, total);
                drop(held);
                if !matches!(worked.recv_timeout(TELL_EVERY), Err(RecvTimeoutError::Timeout)) {
                    return;
                }
            }
        });
        // Dropped when the work is over, if by a panic.
        let _working = working;
        work(&of_work)
    })
}

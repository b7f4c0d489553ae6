//! Which devices run the models: what `NEXUS_DEVICE` asks for, of what is found.
//!
//! What is chosen is decided by functions of what was found, without a device. Deliberately absent: what is needed to find
//! one and to compute on it (`nexus_compute::cuda`), and what follows when one fails (`nexus_engine`).

use super::gpu::{self, GpuOptions};
use crate::settings::{CpuIsa, Device, EngineSettings};
use nexus_compute::Backend;
use nexus_compute::cpu::{Cpu, CpuOptions, Isa};
use nexus_compute::cuda::{self, Absent, Found};
use nexus_engine::{BoxError, Devices};
use std::fmt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;

/// Tokens in a batch where the settings leave it to the device. A CPU is busy with far fewer; a GPU gets closer to its rate
/// with each doubling.
pub(crate) const CPU_BATCH_TOKENS: usize = 4096;
const GPU_BATCH_TOKENS: usize = 16_384;

/// What is asked for, out of what was found.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Cpu,
    Gpus {
        ordinals: Vec<usize>,
        /// Whether it is an error when one of them can not be opened.
        each: bool,
    },
}

/// What people may want to know of a choice.
#[derive(Debug, PartialEq, Eq)]
enum Note {
    Debug(String),
    Warn(String),
}

impl Note {
    fn log(&self) {
        match self {
            Note::Debug(text) => tracing::debug!("{text}"),
            Note::Warn(text) => tracing::warn!("{text}"),
        }
    }
}

/// Opens the devices that the settings ask for. Takes seconds where there are GPUs.
pub(super) fn open(settings: &EngineSettings, kernel_cache: Option<PathBuf>) -> Result<Devices, BoxError> {
    let (choice, notes) = choose(&settings.device, cuda::find, Absent::is_ordinary)?;
    notes.iter().for_each(Note::log);
    let tokens = |by_device| if settings.batch_tokens_max == 0 { by_device } else { settings.batch_tokens_max };
    let cpu = || -> Result<Devices, BoxError> {
        let threads = Some(settings.cpu_threads).filter(|&threads| threads > 0);
        let isa = match settings.cpu_isa {
            CpuIsa::Auto => None,
            CpuIsa::Only(isa) => Some(isa),
        };
        let cpu = Cpu::new(CpuOptions { isa, threads, weights: settings.cpu_weights.0 })
            .map_err(|e| format!("the CPU can not be used: {e}"))?;
        if let Some(better) = Isa::unproven(settings.cpu_weights.0).filter(|_| isa.is_none()) {
            let (name, better) = (cpu.name(), better.name());
            tracing::info!("{name}: it has {better}, too, which is not proven yet; NEXUS_CPU_ISA={better} takes it");
        }
        Ok(Devices::new(vec![Arc::new(cpu)], tokens(CPU_BATCH_TOKENS)))
    };
    let Choice::Gpus { ordinals, each } = choice else { return cpu() };
    let options = GpuOptions { kernel_cache, graph_tokens_max: settings.graph_tokens_max };
    match open_cuda(&ordinals, each, &options, tokens(GPU_BATCH_TOKENS)) {
        Err(error) if settings.device == Device::Auto => {
            tracing::warn!(
                error,
                "no GPU can be used: the CPU runs the models; NEXUS_DEVICE=cpu says that this is meant"
            );
            cpu()
        }
        opened => opened,
    }
}

/// The first of the GPUs that run the models, if they run on GPUs.
pub(super) fn first_gpu(settings: &EngineSettings) -> Option<usize> {
    match choose(&settings.device, cuda::find, Absent::is_ordinary) {
        Ok((Choice::Gpus { ordinals, .. }, _)) => ordinals.first().copied(),
        // Said by who opens the devices for the models.
        Ok((Choice::Cpu, _)) | Err(_) => None,
    }
}

/// Opens GPUs by number. Only those serve that compute as they should.
fn open_cuda(
    ordinals: &[usize],
    each: bool,
    options: &GpuOptions,
    batch_tokens_max: usize,
) -> Result<Devices, BoxError> {
    let opened = open_all(ordinals, each, |ordinal| {
        let backend = gpu::open(ordinal, options).map_err(|error| error.to_string())?;
        gpu::prove(&backend)?;
        Ok::<_, String>(Arc::new(backend))
    })?;
    Ok(Devices::new(opened, batch_tokens_max))
}

/// Opens devices at once, each on a thread. With `each`, all have to open; else those that do not are passed over, unless
/// none is left.
fn open_all<D: Send, E: fmt::Display + Send>(
    ordinals: &[usize],
    each: bool,
    open: impl Fn(usize) -> Result<D, E> + Sync,
) -> Result<Vec<D>, String> {
    let open = &open;
    let outcomes: Vec<(usize, Result<D, E>)> = std::thread::scope(|scope| {
        let opening: Vec<_> = ordinals.iter().map(|&n| (n, scope.spawn(move || open(n)))).collect();
        opening.into_iter().map(|(n, it)| (n, it.join().unwrap_or_else(|panic| resume_unwind(panic)))).collect()
    });
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for (ordinal, outcome) in outcomes {
        match outcome {
            Ok(device) => opened.push(device),
            Err(error) => refused.push(format!("GPU {ordinal} can not be opened: {error}")),
        }
    }
    if opened.is_empty() || (each && !refused.is_empty()) {
        return Err(refused.join("; "));
    }
    refused.into_iter().for_each(|refused| Note::Warn(format!("{refused}; it is passed over")).log());
    Ok(opened)
}

/// What runs the models. `find` is asked only where a GPU may be taken; `nothing_is_wrong` tells a machine without GPUs from
/// one whose GPUs can not be used.
fn choose<A: fmt::Display>(
    device: &Device,
    find: impl FnOnce() -> Result<Vec<Found>, A>,
    nothing_is_wrong: impl FnOnce(&A) -> bool,
) -> Result<(Choice, Vec<Note>), String> {
    let asked = match device {
        Device::Cpu => return Ok((Choice::Cpu, Vec::new())),
        Device::Auto => {
            return Ok(match find() {
                Ok(found) => {
                    let (ordinals, notes) = supported(&found);
                    let choice = if ordinals.is_empty() { Choice::Cpu } else { Choice::Gpus { ordinals, each: false } };
                    (choice, notes)
                }
                Err(absent) if nothing_is_wrong(&absent) => {
                    (Choice::Cpu, vec![Note::Debug(format!("no GPU: {absent}"))])
                }
                Err(absent) => {
                    let detail = "the CPU runs the models; NEXUS_DEVICE=cpu says that this is meant";
                    (Choice::Cpu, vec![Note::Warn(format!("GPUs can not be used: {absent}; {detail}"))])
                }
            });
        }
        Device::Cuda(asked) => asked,
    };
    let found = find().map_err(|absent| format!("NEXUS_DEVICE={device}: {absent}"))?;
    let Some(asked) = asked else {
        let (ordinals, notes) = supported(&found);
        if ordinals.is_empty() {
            let all = if found.is_empty() { "none was found".to_owned() } else { list(&found) };
            return Err(format!("NEXUS_DEVICE={device}: no GPU of compute capability 8.0 or newer: {all}"));
        }
        return Ok((Choice::Gpus { ordinals, each: false }, notes));
    };
    for ordinal in asked {
        let Some(gpu) = found.iter().find(|gpu| gpu.ordinal == *ordinal) else {
            let all = if found.is_empty() { "there is none".to_owned() } else { format!("there are {}", list(&found)) };
            return Err(format!("NEXUS_DEVICE={device}: there is no GPU {ordinal}: {all}"));
        };
        if !gpu.is_supported() {
            return Err(format!("NEXUS_DEVICE={device}: {}: too old, compute capability 8.0 is needed", named(gpu)));
        }
    }
    Ok((Choice::Gpus { ordinals: asked.clone(), each: true }, Vec::new()))
}

/// The GPUs that the kernels run on, and a line for each other.
fn supported(found: &[Found]) -> (Vec<usize>, Vec<Note>) {
    let (good, old): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|gpu| gpu.is_supported());
    let passed_over =
        |gpu: &&Found| Note::Warn(format!("{} is passed over: too old, compute capability 8.0 is needed", named(gpu)));
    (good.into_iter().map(|gpu| gpu.ordinal).collect(), old.iter().map(passed_over).collect())
}

fn named(Found { ordinal, name, capability: (major, minor), .. }: &Found) -> String {
    format!("GPU {ordinal} ({name}, compute capability {major}.{minor})")
}

fn list(found: &[Found]) -> String {
    found.iter().map(named).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: usize, capability: (u32, u32)) -> Found {
        Found { ordinal, name: "NVIDIA A10G".to_owned(), capability, memory_bytes: 24 << 30 }
    }

    /// A choice where `find` gives this; absences are texts, and those that begin with `no` are nothing wrong.
    fn chosen(device: &str, found: Result<Vec<Found>, &str>) -> Result<(Choice, Vec<Note>), String> {
        let device: Device = device.parse().expect("a device");
        choose(&device, || found, |absent| absent.starts_with("no"))
    }

    #[test]
    fn the_cpu_is_taken_without_a_look() {
        let found = choose::<String>(&Device::Cpu, || panic!("it looks"), |_| true);
        assert_eq!(found, Ok((Choice::Cpu, Vec::new())));
    }

    #[test]
    fn auto_takes_all_usable_gpus_or_else_the_cpu() {
        let (choice, notes) = chosen("auto", Ok(vec![gpu(0, (8, 6)), gpu(1, (7, 5)), gpu(2, (9, 0))])).unwrap();
        assert_eq!(choice, Choice::Gpus { ordinals: vec![0, 2], each: false });
        let [Note::Warn(note)] = &notes[..] else { panic!("{notes:?}") };
        assert!(note.contains("GPU 1 (NVIDIA A10G, compute capability 7.5) is passed over"), "{note}");

        let (choice, notes) = chosen("auto", Ok(vec![gpu(0, (7, 0))])).unwrap();
        assert!(choice == Choice::Cpu && matches!(notes[..], [Note::Warn(_)]));
        let (choice, notes) = chosen("auto", Err("no driver")).unwrap();
        assert!(choice == Choice::Cpu && matches!(notes[..], [Note::Debug(_)]), "{notes:?}");
        let (choice, notes) = chosen("auto", Err("NVRTC is missing: pip install it")).unwrap();
        let [Note::Warn(note)] = &notes[..] else { panic!("{notes:?}") };
        assert!(choice == Choice::Cpu && note.contains("pip install it"), "{note}");
    }

    #[test]
    fn cuda_is_a_gpu_or_an_error() {
        let (choice, notes) = chosen("cuda", Ok(vec![gpu(0, (7, 5)), gpu(1, (8, 0))])).unwrap();
        assert_eq!((choice, notes.len()), (Choice::Gpus { ordinals: vec![1], each: false }, 1));
        for (found, part) in [
            (Err("no driver"), "NEXUS_DEVICE=cuda: no driver"),
            (Ok(vec![]), "none was found"),
            (Ok(vec![gpu(0, (7, 5))]), "capability 7.5"),
        ] {
            let error = chosen("cuda", found).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn gpus_that_are_named_have_to_be_there() {
        let found = || Ok(vec![gpu(0, (8, 6)), gpu(1, (7, 5)), gpu(2, (8, 6))]);
        let (choice, notes) = chosen("cuda:2,0", found()).unwrap();
        assert_eq!((choice, notes), (Choice::Gpus { ordinals: vec![2, 0], each: true }, Vec::new()));
        let error = chosen("cuda:0,3", found()).unwrap_err();
        assert!(error.contains("NEXUS_DEVICE=cuda:0,3: there is no GPU 3: there are GPU 0 (NVIDIA"), "{error}");
        let error = chosen("cuda:1", found()).unwrap_err();
        assert!(error.contains("GPU 1") && error.contains("8.0 is needed"), "{error}");
    }

    #[test]
    fn a_gpu_that_does_not_open_is_passed_over_unless_it_was_named_or_is_the_last() {
        let open = |ordinal| if ordinal == 1 { Err("in use") } else { Ok(ordinal) };
        assert_eq!(open_all(&[2, 1, 0], false, open), Ok(vec![2, 0]));
        for (ordinals, each) in [(&[0, 1][..], true), (&[1], false)] {
            assert_eq!(open_all(ordinals, each, open), Err("GPU 1 can not be opened: in use".to_owned()));
        }
    }
}

//! The probe and the device against libraries that stand in for NVIDIA's: missing, damaged, lacking a function, failing, and
//! working in the memory of the host. They are compiled from C when the tests run, and found by `LD_LIBRARY_PATH` in a process
//! of its own for each case.
//!
//! What this can not show: that a kernel computes what it should, and that NVIDIA's libraries do what they document.

#![forbid(unsafe_code)]

use nexus_compute::ComputeError;
use nexus_compute::cuda::kernels::Kernel;
use nexus_compute::cuda::{Address, Arg, Device, DeviceOptions, Format, Gpu, Launch, Product, find};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with stand-ins, for one case.
struct Stubs {
    folder: PathBuf,
}

impl Stubs {
    fn new(case: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-stubs").join(case);
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// Compiles `source` as `library`, with the compiler's `options`.
    fn with(self, source: &str, library: &str, options: &[&str]) -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"])
            .args(options)
            .arg(sources.join(source))
            .arg("-o")
            .arg(self.folder.join(library))
            .output()
            .expect("cc is needed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self
    }

    fn all(case: &str) -> Self {
        Self::new(case).driver(&[]).with("nvrtc.c", "libnvrtc.so.12", &[]).with("cublaslt.c", "libcublasLt.so.12", &[])
    }

    fn driver(self, options: &[&str]) -> Self {
        self.with("cuda.c", "libcuda.so.1", options)
    }

    fn fail(self, what: &str) -> Self {
        fs::write(self.folder.join("fail"), what).unwrap();
        self
    }

    /// Runs one of the tests below that are marked for it, and gives what it wrote and the log of all calls.
    fn run(&self, child: &str) -> (String, String) {
        self.run_beside(child, None)
    }

    /// The same with libraries from a further folder.
    fn run_beside(&self, child: &str, libraries: Option<PathBuf>) -> (String, String) {
        let folders = std::env::join_paths(std::iter::once(self.folder.clone()).chain(libraries)).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([child, "--exact", "--ignored", "--nocapture"])
            .env("LD_LIBRARY_PATH", folders)
            .env("STUB_FOLDER", &self.folder)
            .env("STUB_LOG", self.folder.join("log"))
            .env("STUB_FAIL", self.folder.join("fail"))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{child}: {}\n{}", output.status, String::from_utf8_lossy(&text));
        let read = |name| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        (read("result"), read("log"))
    }

    fn probe(&self) -> String {
        self.run("child_probe").0
    }
}

/// The folder of the case, in its process; none where the test was started otherwise.
fn folder() -> Option<PathBuf> {
    std::env::var_os("STUB_FOLDER").map(PathBuf::from)
}

#[test]
#[ignore = "run by the tests of the probe, in a process of its own"]
fn child_probe() {
    let Some(folder) = folder() else { return };
    let found = find();
    let text = match &found {
        Ok(found) => found.iter().map(|found| format!("{found:?} {}\n", found.is_supported())).collect(),
        Err(absent) => format!("{absent:?}\n{absent}\nordinary: {}", absent.is_ordinary()),
    };
    // Opening tells the same, and does not panic either.
    if found.is_err() {
        let error = Device::open(0, &DeviceOptions::default()).err();
        assert!(matches!(error, Some(ComputeError::Device(_))), "{error:?}");
    }
    fs::write(folder.join("result"), text).unwrap();
}

#[test]
fn without_a_driver_nothing_is_said_but_that() {
    let probe = Stubs::new("missing").probe();
    if !Path::new("/proc/driver/nvidia").exists() {
        assert!(probe.starts_with("NoDriver"), "{probe}");
        assert!(probe.ends_with("ordinary: true"), "{probe}");
    }
}

#[test]
fn a_damaged_library_is_told_with_the_words_of_the_loader() {
    let stubs = Stubs::new("damaged");
    fs::write(stubs.folder.join("libcuda.so.1"), "no library").unwrap();
    let probe = stubs.probe();
    if !Path::new("/proc/driver/nvidia").exists() {
        assert!(probe.starts_with("Library"), "{probe}");
        assert!(probe.contains("libcuda.so.1") && probe.contains("file too short"), "{probe}");
        assert!(probe.ends_with("ordinary: false"), "{probe}");
    }
}

#[test]
fn a_driver_that_lacks_a_function_is_told_by_its_name() {
    let probe = Stubs::new("partial").driver(&["-DWITHOUT_GRAPHS"]).probe();
    assert!(probe.starts_with("Symbol") && probe.contains("libcuda.so.1 lacks cuGraphLaunch"), "{probe}");
    // NVRTC would crash for want of it.
    let probe = Stubs::new("partial-for-nvrtc").driver(&["-DWITHOUT_EXPORT_TABLE"]).probe();
    assert!(probe.contains("libcuda.so.1 lacks cuGetExportTable"), "{probe}");
}

#[test]
fn a_driver_that_fails_is_told_by_call_and_code() {
    let stubs = Stubs::new("failing-driver").driver(&[]);
    for (case, fail, expected) in [
        ("init", "cuInit 999", "cuInit of libcuda.so.1 failed: CUDA_ERROR_UNKNOWN (999)"),
        // A code that no version of the bindings knows, and whose name the driver does not know.
        ("unknown-code", "cuInit 4321", "cuInit of libcuda.so.1 failed: error 4321"),
        ("count", "cuDeviceGetCount 999", "cuDeviceGetCount of"),
        ("name", "cuDeviceGetName 999", "cuDeviceGetName of"),
        // Every function, that for names too.
        ("all", "all 34", "cuInit of libcuda.so.1 failed: error 34"),
        ("no-device", "cuInit 100", "shows no GPU"),
    ] {
        let probe = Stubs { folder: stubs.folder.clone() }.fail(fail).probe();
        assert!(probe.contains(expected), "{case}: {probe}");
        assert!(probe.ends_with("ordinary: false"), "{case}: {probe}");
    }
}

#[test]
fn a_driver_without_gpus_or_of_another_age_is_told() {
    let probe = Stubs::new("none").driver(&["-DDEVICES=0"]).probe();
    assert!(probe.starts_with("NoDevice"), "{probe}");
    let probe = Stubs::new("old").driver(&["-DVERSION=11040"]).probe();
    assert!(probe.contains("runs CUDA 11.4 at most, and this service needs 12.0"), "{probe}");
}

#[test]
fn the_libraries_beside_the_driver_are_looked_for_too() {
    // Machines that have the real ones in the loader's folders find those, and are not what these cases are about.
    let probe = Stubs::new("no-nvrtc").driver(&[]).probe();
    assert!(probe.contains("NVRTC can not be opened") || !probe.starts_with("Library"), "{probe}");
    let probe = Stubs::new("no-cublaslt").driver(&[]).with("nvrtc.c", "libnvrtc.so.12", &[]).probe();
    assert!(probe.contains("cuBLASLt can not be opened") || !probe.starts_with("Library"), "{probe}");
    // One of CUDA 13 under a name that does not tell.
    let stubs = Stubs::new("new-nvrtc").driver(&[]).with("nvrtc.c", "libnvrtc.so.12", &["-DMAJOR=13"]);
    let probe = stubs.probe();
    assert!(probe.starts_with("DriverTooOld") && probe.contains("needs 13.0"), "{probe}");
}

#[test]
fn gpus_are_described() {
    let probe = Stubs::all("found").probe();
    let first = r#"Found { ordinal: 0, name: "Stub 0", capability: (8, 6), memory_bytes: 1073741824 } true"#;
    let second = r#"Found { ordinal: 1, name: "Stub 1", capability: (7, 5), memory_bytes: 1073741824 } false"#;
    assert_eq!(probe.lines().collect::<Vec<_>>(), [first, second]);
}

fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

/// Bytes that tell where they are.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + index / 251) as u8).collect()
}

fn read(device: &Device, from: Address, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    device.read(from, &mut bytes).unwrap();
    bytes
}

/// A product on a device, with what it should give.
struct Sample {
    product: Product,
    expected: Vec<f32>,
}

/// Uploads a product whose numbers are exact in bf16; y is 1 before it.
fn sample(device: &Device, rows: usize, format: Format, accumulate: bool) -> Sample {
    let (k, m) = (8, 16);
    let x: Vec<f32> = (0..rows * k).map(|index| (index % 5) as f32 - 2.0).collect();
    let weight: Vec<f32> = (0..m * k).map(|index| (index % 7) as f32 - 3.0).collect();
    let before = vec![1.0; rows * m];
    let mut expected = if accumulate { before.clone() } else { vec![0.0; rows * m] };
    for row in 0..rows {
        for column in 0..m {
            let products = (0..k).map(|index| x[row * k + index] * weight[column * k + index]);
            expected[row * m + column] += products.sum::<f32>();
        }
    }
    let upload = |bytes: Vec<u8>| {
        let address = device.allocate(bytes.len()).unwrap();
        device.write(address, &bytes).unwrap();
        address
    };
    let y = upload(if format == Format::F32 { bytes(&before) } else { bf16(&before) });
    let (x, weight) = (upload(bf16(&x)), upload(bf16(&weight)));
    let product = Product { x, weight, y, rows, in_columns: k, out_columns: m, format, accumulate };
    Sample { product, expected }
}

impl Sample {
    fn y(&self, device: &Device) -> Vec<f32> {
        let bytes = read(device, self.product.y, self.expected.len() * self.product.format.size_bytes());
        match self.product.format {
            Format::F32 => floats(&bytes),
            Format::Bf16 => {
                bytes.chunks_exact(2).map(|chunk| half::bf16::from_le_bytes([chunk[0], chunk[1]]).to_f32()).collect()
            }
        }
    }
}

#[test]
#[ignore = "run by the test of the device, in a process of its own"]
fn child_device() {
    let Some(folder) = folder() else { return };
    let options = DeviceOptions { kernel_cache: Some(folder.join("cache")) };
    let error = Device::open(1, &options).unwrap_err().to_string();
    assert!(error.contains("cuda:1 (Stub 1, sm_75): compute capability 8.0"), "{error}");
    let device = Device::open(0, &options).unwrap();
    assert_eq!(device.name(), "cuda:0 (Stub 0, sm_86)");
    assert!(device.notes().iter().any(|note| note.contains("compiled in")));
    assert_eq!(device.notes(), Vec::<String>::new());
    assert_eq!(device.memory_bytes_free().unwrap(), 1 << 29);

    // More than two buffers, and more than all slots of the ring.
    let weights = pattern((40 << 20) + 12_345);
    let address = device.allocate(weights.len()).unwrap();
    device.fill(address, &weights).unwrap();
    assert!(read(&device, address, weights.len()) == weights);
    let batch = pattern((9 << 20) + 7);
    device.write(address.offset(256), &batch).unwrap();
    assert!(read(&device, address.offset(256), batch.len()) == batch);
    device.free(address);
    device.free(Address::NULL);

    let error = device.allocate(1 << 30).unwrap_err();
    assert!(
        matches!(&error, ComputeError::OutOfMemory(what) if what.contains("1073741824 bytes asked for, 536870912 of"))
    );

    for (format, accumulate) in [(Format::F32, false), (Format::F32, true), (Format::Bf16, false), (Format::Bf16, true)]
    {
        let sample = sample(&device, 120, format, accumulate);
        device.multiply(&sample.product).unwrap();
        assert_eq!(sample.y(&device), sample.expected, "{format:?} {accumulate}");
    }
    // Of the same bucket, and not for the algorithm that was chosen.
    let unsuitable = sample(&device, 100, Format::F32, false);
    device.multiply(&unsuitable.product).unwrap();
    assert_eq!(unsuitable.y(&device), unsuitable.expected);
    device.multiply(&unsuitable.product).unwrap();
    let mut wrong = unsuitable.product;
    wrong.in_columns = 9;
    assert!(matches!(device.multiply(&wrong), Err(ComputeError::Shape { .. })));

    // A kernel that the stand-in computes, and one whose arguments it tells.
    let x = device.allocate(1024).unwrap();
    let y = device.allocate(1024).unwrap();
    device.write(x, &bf16(&[1.0, -2.5, 3.0, 0.5])).unwrap();
    let widen = [Arg::Address(x), Arg::Address(y), Arg::I32(4)];
    let widen = Launch { kernel: Kernel::ToF32, grid: [1, 1, 1], args: &widen };
    device.launch(&widen).unwrap();
    assert_eq!(floats(&read(&device, y, 16)), [1.0, -2.5, 3.0, 0.5]);
    let args = [
        Arg::Address(x),
        Arg::Address(x),
        Arg::Address(Address::NULL),
        Arg::Address(y),
        Arg::I32(-4096),
        Arg::F32(0.25),
        Arg::I32(1),
    ];
    device.launch(&Launch { kernel: Kernel::NormF32, grid: [3, 2, 1], args: &args }).unwrap();
    device.launch(&Launch { kernel: Kernel::AttentionCausal128, grid: [1, 1, 1], args: &[] }).unwrap();
    for grid in [[0, 1, 1], [1, 65_536, 1], [u32::MAX, 1, 1]] {
        let result = device.launch(&Launch { kernel: Kernel::ToF32, grid, args: widen.args });
        assert!(matches!(result, Err(ComputeError::Shape { .. })), "{grid:?}");
    }

    // Recorded, nothing is done; replayed, it is done with what is there then. Memory may be taken and given back.
    device.write(x, &bf16(&[9.0; 4])).unwrap();
    let recorded = sample(&device, 20, Format::F32, true);
    let graph = device
        .record(&mut || {
            let scratch = device.allocate(512)?;
            device.free(scratch);
            assert!(matches!(device.write(x, &[0]), Err(ComputeError::Shape { .. })));
            assert!(matches!(device.read(x, &mut [0]), Err(ComputeError::Shape { .. })));
            device.launch(&widen)?;
            device.multiply(&recorded.product)
        })
        .unwrap();
    assert_eq!(floats(&read(&device, y, 16)), [1.0, -2.5, 3.0, 0.5]);
    assert_eq!(recorded.y(&device), vec![1.0; 320]);
    device.write(x, &bf16(&[7.0; 4])).unwrap();
    device.replay(&graph).unwrap();
    assert_eq!(floats(&read(&device, y, 16)), [7.0; 4]);
    assert_eq!(recorded.y(&device), recorded.expected);
    // What was chosen while recording stays.
    device.multiply(&recorded.product).unwrap();

    // A recording that fails, by its work, by panic and at its end, leaves a device that works.
    let error = device.record(&mut || Err(ComputeError::OutOfMemory("of the test".into()))).unwrap_err();
    assert_eq!(error, ComputeError::OutOfMemory("of the test".into()));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(device.record(&mut || panic!("of the test")));
    }));
    assert!(panicked.is_err());
    let fail = |what: &str| fs::write(folder.join("fail"), what).unwrap();
    fail("cuStreamEndCapture 901");
    assert!(matches!(device.record(&mut || device.launch(&widen)), Err(ComputeError::Shape { op: "record", .. })));
    fail("");
    device.write(x, &bf16(&[5.0; 4])).unwrap();
    device.launch(&widen).unwrap();
    assert_eq!(floats(&read(&device, y, 16)), [5.0; 4]);

    // While one thread records, what another asks for waits, and is done and not recorded.
    let started = std::sync::Barrier::new(2);
    let device = &device;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            started.wait();
            device.write(x, &bf16(&[3.0; 4])).unwrap();
        });
        let result = device.record(&mut || {
            started.wait();
            std::thread::sleep(std::time::Duration::from_millis(50));
            device.launch(&widen)
        });
        result.unwrap();
    });
    assert_eq!(read(device, x, 8), bf16(&[3.0; 4]));

    // A second device of the same kind takes what was chosen by the first.
    let second = Device::open(0, &options).unwrap();
    assert_eq!(second.notes(), Vec::<String>::new());
    let again = sample(&second, 120, Format::F32, false);
    second.multiply(&again.product).unwrap();
    assert_eq!(again.y(&second), again.expected);

    // Codes are told apart, with the kernel and the device.
    fail("cuLaunchKernel 700");
    let error = device.launch(&widen).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ComputeError::Process(_)), "{text}");
    for part in ["cuda:0 (Stub 0, sm_86)", "cuLaunchKernel of to_f32 on 1 x 1 x 1", "CUDA_ERROR_ILLEGAL_ADDRESS (700)"]
    {
        assert!(text.contains(part), "{text}");
    }
    fail("cuEventSynchronize 214");
    assert!(matches!(device.read(x, &mut [0]), Err(ComputeError::Device(what)) if what.contains("ECC")));
    fail("cublasLtMatmul 3");
    assert!(matches!(device.multiply(&recorded.product), Err(ComputeError::OutOfMemory(_))));
    fail("cublasLtMatmul 13");
    assert!(matches!(device.multiply(&recorded.product), Err(ComputeError::Device(_))));
    fail("");
}

/// What was made and not given back, and what was given back and never made, by kind.
fn balance(log: &str) -> BTreeMap<&str, i64> {
    let mut balance = BTreeMap::new();
    for line in log.lines() {
        let kind = line.split(' ').next().unwrap_or_default();
        if let Some(kind) = kind.strip_prefix('+') {
            *balance.entry(kind).or_default() += 1;
        } else if let Some(kind) = kind.strip_prefix('-') {
            *balance.entry(kind).or_default() -= 1;
        }
    }
    balance
}

#[test]
fn a_device_does_what_is_asked_in_order_and_gives_everything_back() {
    let stubs = Stubs::all("device");
    let (_, log) = stubs.run("child_device");
    let balance = balance(&log);
    let kinds = [
        "context",
        "event",
        "executable",
        "graph",
        "handle",
        "layout",
        "memory",
        "module",
        "operation",
        "pinned",
        "preference",
        "program",
        "stream",
    ];
    assert_eq!(balance.keys().copied().collect::<Vec<_>>(), kinds, "{log}");
    assert!(balance.values().all(|count| *count == 0), "{balance:?}");
    for complaint in ["without a context", "beyond what is allocated", "of what is not allocated"] {
        assert!(!log.contains(complaint), "{complaint}");
    }
    let lines: Vec<&str> = log.lines().collect();
    let count = |line: &str| lines.iter().filter(|other| **other == line).count();

    // Each source is compiled once for this GPU, and loaded.
    assert_eq!(count("compile norm.cu sm_86"), 1);
    assert_eq!(count("+module CUBIN norm.cu sm_86"), 2, "by two devices");
    // No kernel takes more shared memory than every device allows without being asked.
    assert!(!log.contains("allow "), "{log}");
    assert!(lines.contains(&"launch norm_f32 (3 2 1) (256 1 1) 0"), "{log}");
    assert!(lines.contains(&"norm_f32 columns -4096 eps 0.25 kind 1 bias (nil)"), "{log}");
    assert!(lines.contains(&"launch attention_causal_128 (1 1 1) (128 1 1) 49152"));

    // Weights go in pieces of 16 MiB, batches in pieces of 256 KiB.
    assert_eq!(count(&format!("copy to device {}", 16 << 20)), 2);
    assert_eq!(count(&format!("copy to device {}", 256 << 10)), 36);

    // Of four plans, each is timed: twice the algorithms, once unseen and three times seen; then the fastest, once. The one
    // that adds in place is never run.
    assert!(!log.contains(" by 1\n"));
    assert_eq!(count("multiply 120x8x16 by 2"), 4 * 4);
    assert_eq!(count("multiply 120x8x16 by 3"), 4 * 4 + 4 + 1);
    assert_eq!(count("propose 120"), 4);
    assert_eq!(count("multiply 100x8x16 by 2"), 2);
    assert_eq!(count("propose 100"), 1);
    // While recording, the first that is not refused; it stays.
    assert_eq!(count("record 20x8x16 by 2"), 1);
    assert_eq!(count("multiply 20x8x16 by 2"), 1);
    assert_eq!(count("propose 20"), 1);
}

#[test]
#[ignore = "run by the tests of the cache, in a process of its own"]
fn child_open() {
    let Some(folder) = folder() else { return };
    let options = DeviceOptions { kernel_cache: Some(folder.join("cache")) };
    let text = match Device::open(0, &options) {
        Ok(device) => device.notes().join("\n"),
        Err(error) => format!("{error:?}"),
    };
    fs::write(folder.join("result"), text).unwrap();
}

#[test]
fn kernels_are_compiled_once_and_again_where_the_cache_is_of_no_use() {
    let stubs = Stubs::all("cache");
    let compiled = |log: &str| log.lines().filter(|line| line.starts_with("compile ")).count();
    let (_, log) = stubs.run("child_open");
    let all = compiled(&log);
    assert!(all > 1);
    let (notes, log) = stubs.run("child_open");
    assert_eq!((notes.as_str(), compiled(&log)), ("", all), "the second start takes what the first compiled");
    let file = fs::read_dir(stubs.folder.join("cache")).unwrap().next().unwrap().unwrap().path();
    fs::write(file, "damaged").unwrap();
    let (notes, log) = stubs.run("child_open");
    assert!(notes.contains("1 sources"), "{notes}");
    assert_eq!(compiled(&log), all + 1);
    // Another version of the compiler.
    let stubs = Stubs { folder: stubs.folder }.with("nvrtc.c", "libnvrtc.so.12", &["-DMAJOR=11"]);
    let (_, log) = stubs.run("child_open");
    assert_eq!(compiled(&log), 2 * all + 1);
    // A folder that is a file: noted, and no more.
    fs::remove_dir_all(stubs.folder.join("cache")).unwrap();
    fs::write(stubs.folder.join("cache"), "").unwrap();
    let (notes, _) = stubs.run("child_open");
    assert!(notes.contains("can not be kept in"), "{notes}");
}

/// With NVIDIA's compiler, whose folder is in NVRTC_FOLDER: what it makes of the kernels is what is loaded and kept.
#[test]
#[ignore = "run by scripts/check_kernels.sh, which has the compiler"]
fn a_device_is_opened_with_a_real_compiler() {
    let compiler = std::env::var_os("NVRTC_FOLDER").map(PathBuf::from);
    assert!(compiler.is_some(), "NVRTC_FOLDER is not set: see scripts/check_kernels.sh");
    let stubs = Stubs::new("real-nvrtc").driver(&["-DVERSION=13000"]).with("cublaslt.c", "libcublasLt.so.12", &[]);
    let (notes, log) = stubs.run_beside("child_open", compiler.clone());
    let loaded = |log: &str| log.lines().filter(|line| *line == "+module ELF").count();
    assert!(notes.contains(&format!("{} sources of kernels compiled", loaded(&log))), "{notes}\n{log}");
    let (notes, again) = stubs.run_beside("child_open", compiler);
    assert_eq!((notes.as_str(), loaded(&again)), ("", 2 * loaded(&log)));
}

#[test]
fn a_device_that_can_not_be_opened_says_why_and_gives_everything_back() {
    let stubs = Stubs::all("failing");
    for (fail, expected) in [
        ("cuDevicePrimaryCtxRetain 2", "OutOfMemory"),
        ("nvrtcCompileProgram 6", "NVRTC_ERROR_COMPILATION (6)\\nembed.cu(7): error"),
        ("cuModuleLoadData 999", "cuModuleLoadData of embed.cu"),
        ("cuModuleGetFunction 500", "cuModuleGetFunction of embed_rows in embed.cu"),
        ("cuMemHostAlloc 2", "can be page-locked"),
        ("cuStreamCreate 999", "cuStreamCreate"),
        ("cuEventCreate 999", "cuEventCreate"),
        ("cuMemAlloc_v2 2", "OutOfMemory"),
        ("cublasLtCreate 3", "OutOfMemory"),
        ("cublasLtMatmulPreferenceCreate 14", "cublasLtMatmulPreferenceCreate"),
    ] {
        let stubs = Stubs { folder: stubs.folder.clone() }.fail(fail);
        let (error, log) = stubs.run("child_open");
        assert!(error.contains(expected), "{fail}: {error}");
        assert!(balance(&log).values().all(|count| *count == 0), "{fail}: {:?}", balance(&log));
    }
}

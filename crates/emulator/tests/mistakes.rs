//! Kernels with one mistake each (`wrong/wrong.cu`): the emulator has to see it. And that its matrix instructions compute.

#![forbid(unsafe_code)]

use nexus_compute::cuda::{Address, Arg, Gpu};
use nexus_emulator::Emulated;

fn floats(gpu: &Emulated, address: Address, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * count];
    gpu.read(address, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn a_missing_barrier_leaves_what_was_there() {
    let gpu = Emulated::new();
    let out = gpu.allocate(256).unwrap();
    gpu.launch_by_name("wrong_no_barrier", 64, 0, [1, 1, 1], &[Arg::Address(out)]).unwrap();
    assert!(floats(&gpu, out, 64).iter().any(|x| x.is_nan()));
}

#[test]
fn a_copy_that_is_not_waited_for_has_not_happened() {
    let gpu = Emulated::new();
    let (from, out) = (gpu.allocate(512).unwrap(), gpu.allocate(128).unwrap());
    gpu.write(from, &[0; 512]).unwrap();
    gpu.launch_by_name("wrong_no_wait", 32, 512, [1, 1, 1], &[Arg::Address(from), Arg::Address(out)]).unwrap();
    assert!(floats(&gpu, out, 32).iter().all(|x| x.is_nan()));
}

#[test]
fn threads_that_miss_each_other_are_told() {
    let gpu = Emulated::new();
    let out = gpu.allocate(256).unwrap();
    for (kernel, threads, shared_bytes, words) in [
        ("wrong_barrier", 64, 0, "40 of 64 threads wait at a barrier"),
        ("wrong_lanes", 32, 0, "wait for lanes of their warp"),
        ("wrong_shared", 32, 1024, "beyond the block's shared memory"),
        ("no_such_kernel", 32, 0, "no such kernel"),
        ("wrong_barrier", 32, 0, "blocks of 64 threads"),
    ] {
        let error = gpu.launch_by_name(kernel, threads, shared_bytes, [1, 1, 1], &[Arg::Address(out)]).unwrap_err();
        assert!(error.contains(words), "{kernel}: {error}");
    }
    let error = gpu.launch_by_name("wrong_barrier", 64, 0, [1, 1, 1], &[]).unwrap_err();
    assert!(error.contains("takes 1 arguments"), "{error}");
    // It works on.
    gpu.launch_by_name("wrong_no_barrier", 64, 0, [1, 1, 1], &[Arg::Address(out)]).unwrap();
}

#[test]
fn a_warp_multiplies_as_a_loop_does() {
    let gpu = Emulated::new();
    let value = |i: usize| half::bf16::from_f32(((i * 37) % 23) as f32 - 11.0);
    let bytes = |count: usize, first: usize| -> Vec<u8> {
        (first..first + count).flat_map(|i| value(i).to_le_bytes()).collect()
    };
    let [a, b, c] = [512, 256, 512].map(|bytes| gpu.allocate(bytes).unwrap());
    gpu.write(a, &bytes(256, 0)).unwrap();
    gpu.write(b, &bytes(128, 256)).unwrap();
    gpu.launch_by_name("product_16_8_16", 32, 768, [1, 1, 1], &[a, b, c].map(Arg::Address)).unwrap();
    for (i, found) in floats(&gpu, c, 128).into_iter().enumerate() {
        let (row, column) = (i / 8, i % 8);
        let expected: f32 = (0..16).map(|k| value(row * 16 + k).to_f32() * value(256 + column * 16 + k).to_f32()).sum();
        assert_eq!(found, expected, "row {row}, column {column}");
    }
}

//! Random operands that are made fast: some random values are repeated.

use half::{bf16, f16};
use welm_kernels::{Buffer, Device, Element, Result};

/// Number of values that are repeated. It is prime, so that rows are not equal.
const PERIOD: usize = 1_048_573;

/// xorshift64* (Vigna).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `[-1, 1)`.
    fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn values<T>(len: usize, seed: u64, mut value: impl FnMut(&mut Random) -> T) -> Vec<T> {
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..len.min(PERIOD)).map(|_| value(&mut random)).collect()
}

/// `len` values on the host.
fn on_host<T: Copy>(len: usize, values: &[T]) -> Vec<T> {
    values.iter().copied().cycle().take(len).collect()
}

/// `len` values on the device, repeated there.
fn on_device<T: Element>(device: &Device, len: usize, values: &[T]) -> Result<Buffer<T>> {
    let mut buffer = device.uninit(len)?;
    buffer.write(0, values)?;
    let mut done = values.len();
    while done < len {
        let n = done.min(len - done);
        buffer.copy_within(0, done, n)?;
        done += n;
    }
    Ok(buffer)
}

/// Uniform in `[-size, size)`.
pub(super) fn bf16s(device: &Device, len: usize, size: f32, seed: u64) -> Result<Buffer<bf16>> {
    on_device(device, len, &values(len, seed, |r| bf16::from_f32(r.uniform() * size)))
}

/// As above.
pub(super) fn f32s(device: &Device, len: usize, size: f32, seed: u64) -> Result<Buffer<f32>> {
    on_device(device, len, &values(len, seed, |r| r.uniform() * size))
}

/// Uniform in `[size / 2, size * 3 / 2)`, for scales.
pub(super) fn scales(device: &Device, len: usize, size: f32, seed: u64) -> Result<Buffer<f32>> {
    on_device(device, len, &values(len, seed, |r| (1.0 + r.uniform() / 2.0) * size))
}

/// In -127..=127.
pub(super) fn i8s(device: &Device, len: usize, seed: u64) -> Result<Buffer<i8>> {
    on_device(device, len, &values(len, seed, int8))
}

fn int8(random: &mut Random) -> i8 {
    ((random.bits() >> 33) as i32 % 255 - 127) as i8
}

/// On the host: uniform in `[-size, size)`.
pub(super) fn host_bf16s(len: usize, size: f32, seed: u64) -> Vec<bf16> {
    on_host(len, &values(len, seed, |r| bf16::from_f32(r.uniform() * size)))
}

/// On the host: in -127..=127.
pub(super) fn host_i8s(len: usize, seed: u64) -> Vec<i8> {
    on_host(len, &values(len, seed, int8))
}

/// On the host: uniform in `[size / 2, size * 3 / 2)`.
pub(super) fn host_f16_scales(len: usize, size: f32, seed: u64) -> Vec<f16> {
    on_host(len, &values(len, seed, |r| f16::from_f32((1.0 + r.uniform() / 2.0) * size)))
}

/// As above.
pub(super) fn host_f32_scales(len: usize, size: f32, seed: u64) -> Vec<f32> {
    on_host(len, &values(len, seed, |r| (1.0 + r.uniform() / 2.0) * size))
}

/// `0..n` in random order.
pub(super) fn order(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, (random.bits() >> 33) as usize % (i + 1));
    }
    order
}

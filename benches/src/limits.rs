//! Measures the machine's own limits, with which other figures are compared: bytes read from memory in a second, and
//! int8 and f32 operations on registers in a second.
//!
//! Reading: every thread adds up its own part of a buffer that is much larger than the last-level cache, with the
//! widest vectors of the machine, as one stream of addresses or as several at once; the better one counts. Huge pages
//! are requested. Computing: independent chains of multiply-adds on operands in registers, with enough chains to hide
//! the instruction's latency. A multiplication and an addition are two operations.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::hint::black_box;
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Seconds of one pass of arithmetic.
const PASS_SECONDS: f64 = 0.05;
/// Rounds of the chains between two looks at the clock, at first.
const ROUNDS: usize = 1 << 16;

/// A rate in units of 10^9 a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The rate of the fastest pass.
    pub best: f64,
    /// The median.
    pub median: f64,
    /// How it was reached.
    pub how: &'static str,
}

impl Rate {
    /// From the times of passes that each did `work`.
    fn of(how: &'static str, work: f64, mut seconds: Vec<f64>) -> Rate {
        seconds.sort_by(f64::total_cmp);
        let rate = |s: f64| work / s / 1e9;
        Rate { best: rate(seconds[0]), median: rate(seconds[seconds.len() / 2]), how }
    }

    fn record(&self) -> Value {
        json!({ "best": self.best, "median": self.median, "how": self.how })
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The name of the processor.
    pub cpu: String,
    /// Threads that worked.
    pub threads: usize,
    /// Size of the buffer that was read.
    pub buffer_bytes: usize,
    /// Bytes read.
    pub read: Rate,
    /// int8 operations, summed as int32.
    pub int8: Rate,
    /// f32 operations.
    pub f32: Rate,
}

impl Limits {
    /// A record of them.
    pub fn record(&self) -> Value {
        json!({
            "record": "limits", "cpu": self.cpu, "threads": self.threads, "buffer_bytes": self.buffer_bytes,
            "read_gb_per_s": self.read.record(), "int8_gop_per_s": self.int8.record(),
            "f32_gflop_per_s": self.f32.record(),
        })
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} threads: best, median", self.cpu, self.threads)?;
        let mut line = |what: &str, rate: Rate, unit: &str| {
            writeln!(f, "{what:5} {:8.1} {:8.1} {unit:8} {}", rate.best, rate.median, rate.how)
        };
        line("read", self.read, "GB/s")?;
        line("int8", self.int8, "GOP/s")?;
        line("f32", self.f32, "GFLOP/s")
    }
}

/// Measures all of them, each `passes` times.
///
/// # Errors
/// No threads, no passes, or a buffer too small for that many threads.
pub fn measure(threads: usize, buffer_bytes: usize, passes: usize) -> Result<Limits> {
    ensure!(threads > 0 && passes > 0, "expected threads and passes, got {threads} and {passes}");
    let part = buffer_bytes / threads / PART_MULTIPLE * PART_MULTIPLE;
    ensure!(part > 0, "expected {PART_MULTIPLE} bytes a thread at least, got {buffer_bytes} in all");
    let buffer = Buffer::new(part * threads);
    Ok(Limits {
        cpu: cpu_name(),
        threads,
        buffer_bytes: part * threads,
        read: best(readers().into_iter().map(|reader| read(&buffer, part, threads, passes, reader))),
        int8: best(int8_chains().into_iter().map(|chains| compute(threads, passes, chains))),
        f32: best(f32_chains().into_iter().map(|chains| compute(threads, passes, chains))),
    })
}

fn best(rates: impl Iterator<Item = Rate>) -> Rate {
    rates.max_by(|a, b| a.best.total_cmp(&b.best)).expect("every machine has a portable way")
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name"));
    name.and_then(|line| Some(line.split_once(':')?.1.trim().to_string())).unwrap_or_else(|| "unknown".into())
}

/// For each pass, the seconds that `work(thread)` takes on all threads at once, from the moment when the last is ready
/// to the moment when the last is done. A first pass is not counted.
fn passes_on(threads: usize, passes: usize, work: impl Fn(usize) + Sync) -> Vec<f64> {
    let (ready, work) = (Barrier::new(threads), &work);
    // Each pass of each thread: when it began and when it was done.
    let spans = Mutex::new(vec![Vec::new(); passes + 1]);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (ready, spans) = (&ready, &spans);
            scope.spawn(move || {
                for pass in 0..=passes {
                    ready.wait();
                    let begin = Instant::now();
                    work(thread);
                    let end = Instant::now();
                    spans.lock().expect("no thread panics")[pass].push((begin, end));
                }
            });
        }
    });
    let spans = spans.into_inner().expect("no thread panics");
    let seconds = |spans: &Vec<(Instant, Instant)>| {
        let begin = spans.iter().map(|s| s.0).min().expect("at least one thread");
        let end = spans.iter().map(|s| s.1).max().expect("at least one thread");
        (end - begin).as_secs_f64()
    };
    spans[1..].iter().map(seconds).collect()
}

// ---- reading ------------------------------------------------------------------------------------------------

/// Parts are multiples of this: the number of streams of addresses times the bytes of an unrolled step.
const PART_MULTIPLE: usize = 4 * 512;
/// Two megabytes: a huge page on x86-64 and on most others.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes on huge pages, if the system gives any.
struct Buffer {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the pointer is to plain bytes that this value owns and that nothing writes after `new`.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Buffer {
        let layout = Layout::from_size_align(bytes, HUGE_PAGE).expect("a size that was asked for in MiB");
        // SAFETY: the layout is not empty; the caller has seen to that.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        #[cfg(target_os = "linux")]
        // SAFETY: the range is this allocation's; the advice changes the size of its pages, not what is in them.
        unsafe {
            libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE)
        };
        // Untouched pages would all be one shared page of zeros. The value is not 0, so that nothing can skip the reads.
        // SAFETY: `bytes` bytes from `start` are this allocation.
        unsafe { std::ptr::write_bytes(start, 0x5a, bytes) };
        Buffer { start, layout }
    }

    /// Part `i`, of `bytes` bytes.
    fn part(&self, i: usize, bytes: usize) -> &[u8] {
        assert!((i + 1) * bytes <= self.layout.size());
        // SAFETY: within the allocation, which is initialised and which nothing writes any more.
        unsafe { std::slice::from_raw_parts(self.start.add(i * bytes), bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`, and freed here only.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// A way to read some bytes, a multiple of [`PART_MULTIPLE`]; returns something that depends on all of them.
type Reader = (&'static str, fn(&[u8]) -> u64);

fn read(buffer: &Buffer, part: usize, threads: usize, passes: usize, (how, reader): Reader) -> Rate {
    let seconds = passes_on(threads, passes, |thread| {
        black_box(reader(black_box(buffer.part(thread, part))));
    });
    Rate::of(how, (part * threads) as f64, seconds)
}

fn readers() -> Vec<Reader> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return vec![
                ("avx512, 1 stream", x86::read_avx512::<1>),
                ("avx512, 4 streams", x86::read_avx512::<4>),
            ];
        }
        if is_x86_feature_detected!("avx2") {
            return vec![("avx2, 1 stream", x86::read_avx2::<1>), ("avx2, 4 streams", x86::read_avx2::<4>)];
        }
    }
    vec![("portable", read_portable)]
}

/// With vectors as wide as the compiler chooses.
fn read_portable(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for block in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

// ---- computing ----------------------------------------------------------------------------------------------

/// A way to compute: its name, the operations of a round, and some rounds of it.
type Chains = (&'static str, usize, fn(usize));

fn compute(threads: usize, passes: usize, (how, ops, chains): Chains) -> Rate {
    let seconds = passes_on(1, 1, |_| chains(ROUNDS))[0];
    let rounds = (ROUNDS as f64 * PASS_SECONDS / seconds).ceil() as usize;
    Rate::of(how, (threads * ops * rounds) as f64, passes_on(threads, passes, |_| chains(rounds)))
}

fn int8_chains() -> Vec<Chains> {
    let mut ways: Vec<Chains> = vec![("portable", 2 * 64, int8_portable)];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            ways.push(("avx512 vpdpbusd", 16 * 64 * 2, x86::int8_avx512vnni));
        }
        if is_x86_feature_detected!("avxvnni") {
            ways.push(("avx vpdpbusd", 12 * 32 * 2, x86::int8_avxvnni));
        }
        if is_x86_feature_detected!("avx2") {
            ways.push(("avx2 vpmaddubsw", 8 * 32 * 2, x86::int8_avx2));
        }
    }
    ways
}

fn f32_chains() -> Vec<Chains> {
    let mut ways: Vec<Chains> = vec![("portable", 2 * 64, f32_portable)];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            ways.push(("avx512 fma", 16 * 16 * 2, x86::f32_avx512));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            ways.push(("avx2 fma", 12 * 8 * 2, x86::f32_avx2));
        }
    }
    ways
}

/// With vectors as wide as the compiler chooses.
fn int8_portable(rounds: usize) {
    let (a, b) = (black_box([3i8; 64]), black_box([-5i8; 64]));
    let mut sums = [0i32; 64];
    for _ in 0..rounds {
        // black_box, because the compiler would compute the product only once.
        let a = black_box(&a);
        for i in 0..64 {
            sums[i] = sums[i].wrapping_add(i32::from(i16::from(a[i]) * i16::from(b[i])));
        }
    }
    black_box(sums);
}

/// With vectors as wide as the compiler chooses, without fused multiply-adds.
fn f32_portable(rounds: usize) {
    let (a, b) = (black_box([0.999f32; 64]), black_box([0.001f32; 64]));
    let mut sums = [0f32; 64];
    for _ in 0..rounds {
        for i in 0..64 {
            sums[i] = sums[i] * a[i] + b[i];
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Reads with `S` streams of addresses at once.
    pub(super) fn read_avx512<const S: usize>(bytes: &[u8]) -> u64 {
        #[target_feature(enable = "avx512f")]
        fn inner<const S: usize>(bytes: &[u8]) -> u64 {
            let mut sums = [_mm512_setzero_si512(); 8];
            let each = bytes.len() / S;
            for at in (0..each).step_by(512) {
                for stream in 0..S {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let from = &bytes[stream * each + at + 64 * lane..][..64];
                        // SAFETY: 64 bytes; no alignment is asked for.
                        let x = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
                        *sum = _mm512_add_epi64(*sum, x);
                    }
                }
            }
            sums.iter().fold(0, |a, &sum| a.wrapping_add(_mm512_reduce_add_epi64(sum) as u64))
        }
        // SAFETY: `readers` gives this function only where the machine has the instructions.
        unsafe { inner::<S>(bytes) }
    }

    /// Reads with `S` streams of addresses at once.
    pub(super) fn read_avx2<const S: usize>(bytes: &[u8]) -> u64 {
        #[target_feature(enable = "avx2")]
        fn inner<const S: usize>(bytes: &[u8]) -> u64 {
            let mut sums = [_mm256_setzero_si256(); 8];
            let each = bytes.len() / S;
            for at in (0..each).step_by(256) {
                for stream in 0..S {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let from = &bytes[stream * each + at + 32 * lane..][..32];
                        // SAFETY: 32 bytes; no alignment is asked for.
                        let x = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
                        *sum = _mm256_add_epi64(*sum, x);
                    }
                }
            }
            let words = |sum: __m256i| {
                [
                    _mm256_extract_epi64::<0>(sum),
                    _mm256_extract_epi64::<1>(sum),
                    _mm256_extract_epi64::<2>(sum),
                    _mm256_extract_epi64::<3>(sum),
                ]
            };
            sums.iter().flat_map(|&sum| words(sum)).fold(0, |a, x| a.wrapping_add(x as u64))
        }
        // SAFETY: `readers` gives this function only where the machine has the instructions.
        unsafe { inner::<S>(bytes) }
    }

    /// Sixteen chains: a latency of four or five cycles, with two instructions a cycle, needs ten.
    pub(super) fn int8_avx512vnni(rounds: usize) {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn inner(rounds: usize) {
            let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
            let mut sums = [_mm512_setzero_si512(); 16];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, a, b);
                }
            }
            black_box(sums);
        }
        // SAFETY: `int8_chains` gives this function only where the machine has the instructions.
        unsafe { inner(rounds) }
    }

    /// Twelve chains: there are sixteen registers.
    pub(super) fn int8_avxvnni(rounds: usize) {
        #[target_feature(enable = "avx2,avxvnni")]
        fn inner(rounds: usize) {
            let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(-5)));
            let mut sums = [_mm256_setzero_si256(); 12];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
                }
            }
            black_box(sums);
        }
        // SAFETY: `int8_chains` gives this function only where the machine has the instructions.
        unsafe { inner(rounds) }
    }

    /// Products of bytes to int16, pairs of these to int32, and the sum: three instructions for 32 products.
    pub(super) fn int8_avx2(rounds: usize) {
        #[target_feature(enable = "avx2")]
        fn inner(rounds: usize) {
            let (mut a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(-5)));
            let ones = black_box(_mm256_set1_epi16(1));
            let mut sums = [_mm256_setzero_si256(); 8];
            for _ in 0..rounds {
                for sum in &mut sums {
                    // SAFETY: there is no instruction. It hides from the compiler that the operand stays the same,
                    // because the product would then be computed only once.
                    unsafe { asm!("/* {} */", inout(ymm_reg) a, options(nomem, nostack, preserves_flags)) };
                    let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones);
                    *sum = _mm256_add_epi32(*sum, pairs);
                }
            }
            black_box(sums);
        }
        // SAFETY: `int8_chains` gives this function only where the machine has the instructions.
        unsafe { inner(rounds) }
    }

    /// Sixteen chains, as for int8.
    pub(super) fn f32_avx512(rounds: usize) {
        #[target_feature(enable = "avx512f")]
        fn inner(rounds: usize) {
            let (a, b) = (black_box(_mm512_set1_ps(0.999)), black_box(_mm512_set1_ps(0.001)));
            let mut sums = [_mm512_setzero_ps(); 16];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, a, b);
                }
            }
            black_box(sums);
        }
        // SAFETY: `f32_chains` gives this function only where the machine has the instructions.
        unsafe { inner(rounds) }
    }

    /// Twelve chains: there are sixteen registers.
    pub(super) fn f32_avx2(rounds: usize) {
        #[target_feature(enable = "avx2,fma")]
        fn inner(rounds: usize) {
            let (a, b) = (black_box(_mm256_set1_ps(0.999)), black_box(_mm256_set1_ps(0.001)));
            let mut sums = [_mm256_setzero_ps(); 12];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, a, b);
                }
            }
            black_box(sums);
        }
        // SAFETY: `f32_chains` gives this function only where the machine has the instructions.
        unsafe { inner(rounds) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_reads_every_byte() {
        let mut bytes = vec![0u8; 3 * PART_MULTIPLE];
        for (_, reader) in readers().into_iter().chain([("portable", read_portable as fn(&[u8]) -> u64)]) {
            assert_eq!(reader(&bytes), 0);
            for at in (0..bytes.len()).step_by(8) {
                bytes[at] = 1;
                assert_eq!(reader(&bytes), 1, "byte {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn all_limits_are_measured() {
        let limits = measure(2, 8 << 20, 1).unwrap();
        for rate in [limits.read, limits.int8, limits.f32] {
            assert!(rate.best > 0.0 && rate.best >= rate.median && rate.median.is_finite(), "{rate:?}");
        }
        assert_eq!(limits.buffer_bytes, 8 << 20);
        assert!(measure(0, 8 << 20, 1).is_err() && measure(2, 100, 1).is_err());
    }
}

//! How long a launch takes.
//!
//! Launches are recorded as one CUDA graph, as the engine's decode steps are. The graph is repeated between two
//! synchronisations, so that the time does not include the work of the host. A kernel that is bound by memory must find
//! nothing in the L2 cache. So a case has several sets of buffers, together larger than any L2 cache, and each launch
//! uses the next set.

use std::time::Instant;

use welm_kernels::{Device, Error, Result};

/// Most launches of a recording.
const MAX_RECORDED: usize = 1024;
/// Most repetitions of a recording in a sample.
const MAX_REPEATS: usize = 100_000;

/// How long a measurement takes.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Number of samples; the median is reported.
    pub samples: usize,
    /// Seconds of a sample at least; a single launch may take longer.
    pub sample_seconds: f64,
    /// Bytes that the sets of a case read together at least, so that nothing is in the L2 cache.
    pub cold_bytes: u64,
}

impl Effort {
    /// For figures that are recorded.
    pub fn full() -> Effort {
        // The largest L2 cache so far has 126 MB.
        Effort { samples: 7, sample_seconds: 0.05, cold_bytes: 384 << 20 }
    }

    /// For quick figures.
    pub fn quick() -> Effort {
        Effort { samples: 3, sample_seconds: 0.005, ..Effort::full() }
    }

    /// Number of sets, of `bytes` each, so that none is in the L2 cache when it is used again.
    pub fn sets(&self, bytes: u64) -> usize {
        self.cold_bytes.div_ceil(bytes.max(1)).clamp(1, MAX_RECORDED as u64) as usize
    }
}

/// Times of a launch in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// The median of the samples.
    pub us: f64,
    /// The least.
    pub least_us: f64,
    /// The most.
    pub most_us: f64,
    /// Launches of a sample.
    pub launches: usize,
}

impl Times {
    /// From samples of `launches` launches each, in seconds.
    pub fn of(mut seconds: Vec<f64>, launches: usize) -> Times {
        seconds.sort_by(f64::total_cmp);
        let us = |s: f64| s * 1e6 / launches as f64;
        let (first, last) = (seconds[0], seconds[seconds.len() - 1]);
        Times { us: us(seconds[seconds.len() / 2]), least_us: us(first), most_us: us(last), launches }
    }
}

/// Measures the time of `launch(set)`, over all sets in turn.
///
/// # Errors
/// Whatever `launch` returns, or the driver.
pub fn time(
    device: &Device,
    effort: &Effort,
    sets: usize,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<Times> {
    let mut all = |device: &Device| {
        (0..sets).try_for_each(&mut launch)?;
        device.synchronize()
    };
    all(device)?; // loads the code
    let start = Instant::now();
    all(device)?;
    let pass = start.elapsed().as_secs_f64();

    // A graph is long enough to make its start negligible, and short enough that many fit into a sample.
    let passes = (effort.sample_seconds / 4.0 / pass).ceil() as usize;
    let passes = passes.clamp(1, (MAX_RECORDED / sets).max(1));
    let graph =
        device.capture::<Error>(|| (0..passes).try_for_each(|_| (0..sets).try_for_each(&mut launch)))?;
    let repeat = |n: usize| {
        device.synchronize()?;
        let start = Instant::now();
        (0..n).try_for_each(|_| graph.launch())?;
        device.synchronize()?;
        Result::Ok(start.elapsed().as_secs_f64())
    };
    // The clocks of an idle device are low, so it works for the time of a sample before the first one.
    let (mut repeats, start) = (1, Instant::now());
    let seconds = loop {
        let seconds = repeat(repeats)?;
        if start.elapsed().as_secs_f64() >= effort.sample_seconds || repeats == MAX_REPEATS {
            break seconds / repeats as f64;
        }
        repeats = (2 * repeats).min(MAX_REPEATS);
    };
    let repeats = (effort.sample_seconds / seconds).ceil().clamp(1.0, MAX_REPEATS as f64) as usize;
    let samples = (0..effort.samples.max(1)).map(|_| repeat(repeats)).collect::<Result<Vec<_>>>()?;
    Ok(Times::of(samples, repeats * passes * sets))
}

/// Bytes per second of a copy within the device's memory, reads and writes together: the best of some sizes that
/// fit.
///
/// # Errors
/// [`Error::OutOfMemory`] if not even the smallest fits, and what the driver reports.
pub fn copy_bandwidth(device: &Device, effort: &Effort, sizes: &[usize]) -> Result<f64> {
    let mut best: Option<f64> = None;
    for &bytes in sizes {
        let mut buffer = match device.zeros::<u8>(2 * bytes) {
            Err(Error::OutOfMemory { .. }) if best.is_some() => break,
            buffer => buffer?,
        };
        let times = time(device, effort, 1, |_| buffer.copy_within(0, bytes, bytes))?;
        let rate = 2.0 * bytes as f64 / (times.us * 1e-6);
        best = Some(best.map_or(rate, |best| best.max(rate)));
    }
    best.ok_or_else(|| Error::driver("copy_bandwidth", "no size was asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_one_launch() {
        let times = Times::of(vec![0.004, 0.002, 0.003], 1000);
        assert_eq!(times, Times { us: 3.0, least_us: 2.0, most_us: 4.0, launches: 1000 });
    }

    #[test]
    fn sets_are_larger_than_the_cache() {
        let effort = Effort { cold_bytes: 100, ..Effort::quick() };
        assert_eq!([200, 100, 99, 33].map(|bytes| effort.sets(bytes)), [1, 1, 2, 4]);
        assert_eq!(effort.sets(0), 100);
    }
}

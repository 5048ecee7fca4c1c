//! Results as lines of JSON, written at once, so that they are not lost if a run ends early. `gpu/peer.py` reads them.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use welm_core::ModelConfig;
use welm_kernels::Device;

use crate::cases::{Limit, Shape};
use crate::timing::Times;
use crate::whole::Whole;

/// A file of lines, or no file.
#[derive(Debug)]
pub struct Lines(Option<File>);

impl Lines {
    /// Creates a file, or empties it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: Option<&Path>) -> Result<Lines> {
        let create = |path: &Path| File::create(path).with_context(|| path.display().to_string());
        Ok(Lines(path.map(create).transpose()?))
    }

    /// Writes a line.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, record: &Value) -> Result<()> {
        if let Some(file) = &mut self.0 {
            writeln!(file, "{record}")?;
        }
        Ok(())
    }
}

/// The device, and its bandwidth in bytes per second.
pub fn device(device: &Device, copy_bandwidth: f64) -> Value {
    let info = device.info();
    let (major, minor) = info.capability;
    json!({
        "record": "device", "welm": env!("CARGO_PKG_VERSION"), "name": info.name,
        "capability": format!("{major}.{minor}"), "multiprocessors": info.multiprocessors,
        "memory_bytes": info.memory_bytes, "copy_gb_per_s": round(copy_bandwidth / 1e9),
    })
}

/// A kernel with its times, or the reason why there are none, and the fraction of its limit that is predicted for an
/// H100.
pub fn kernel(shape: &Shape, times: Result<Times, String>, copy_bandwidth: f64) -> Value {
    let mut record = json!({
        "record": "kernel", "group": shape.group(), "variant": shape.variant(), "sizes": shape.sizes(),
        "limit": shape.limit().name(), "predicted": round(shape.predicted()),
    });
    match times {
        Ok(times) => extend(&mut record, timed(times, shape.bytes(), shape.ops(), copy_bandwidth)),
        Err(reason) => extend(&mut record, json!({ "skipped": reason })),
    }
    record
}

/// A whole model in two records; `variant` is the form of activations in prompts.
pub fn whole(config: &ModelConfig, variant: &str, prompt: usize, whole: &Whole, copy: f64) -> [Value; 2] {
    let record = |group: &str, limit: Limit, sizes: Value, measured: Value| {
        let mut record = json!({
            "record": "model", "group": group, "variant": variant, "sizes": sizes, "limit": limit.name(),
            "parameters": config.n_params(), "weight_bytes": whole.weight_bytes,
            "load_seconds": round(whole.load_seconds),
        });
        extend(&mut record, measured);
        record
    };
    [
        record(
            "model_decode",
            Limit::Copy,
            json!({ "batch": 1 }),
            timed(whole.decode, whole.decode_bytes, 0, copy),
        ),
        record(
            "model_prefill",
            Limit::Int8,
            json!({ "n": prompt }),
            timed(whole.prefill, 0, whole.prefill_ops, copy),
        ),
    ]
}

/// Times, and the rates that follow from them. There is no rate for 0 bytes or operations.
fn timed(times: Times, bytes: u64, ops: u64, copy_bandwidth: f64) -> Value {
    let seconds = times.us * 1e-6;
    let mut record = json!({
        "us": round(times.us), "least_us": round(times.least_us), "most_us": round(times.most_us),
        "launches": times.launches,
    });
    if bytes > 0 {
        let rate = bytes as f64 / seconds;
        let of_copy = round(rate / copy_bandwidth);
        extend(&mut record, json!({ "bytes": bytes, "gb_per_s": round(rate / 1e9), "of_copy": of_copy }));
    }
    if ops > 0 {
        extend(&mut record, json!({ "ops": ops, "tera_per_s": round(ops as f64 / seconds / 1e12) }));
    }
    record
}

fn extend(record: &mut Value, more: Value) {
    if let (Value::Object(record), Value::Object(more)) = (record, more) {
        record.extend(more);
    }
}

/// Rounds to four digits.
fn round(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let factor = 10f64.powi(3 - x.abs().log10().floor() as i32);
    (x * factor).round() / factor
}

/// A record as text, on one line.
pub fn text(record: &Value) -> String {
    let word = |key: &str| record[key].as_str().unwrap_or_default();
    let sizes = record["sizes"].as_object().into_iter().flatten();
    let sizes: Vec<_> = sizes.map(|(name, value)| format!("{name} {value}")).collect();
    let mut line = format!("{:18} {:13} {:48}", word("group"), word("variant"), sizes.join(" "));
    if let Some(reason) = record["skipped"].as_str() {
        return line + " " + reason;
    }
    line += &format!(" {:>10} us", record["us"].to_string());
    for (key, unit) in [("gb_per_s", "GB/s"), ("tera_per_s", "T/s"), ("of_copy", "of copy")] {
        if !record[key].is_null() {
            line += &format!(" {:>8} {unit}", record[key].to_string());
        }
    }
    if let Some(predicted) = record["predicted"].as_f64() {
        line += &format!(" (predicted {predicted:.2} of {})", word("limit"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_times() {
        let times = Times { us: 100.0, least_us: 90.0, most_us: 110.0, launches: 5 };
        let record = timed(times, 300_000_000, 50_000_000_000, 4e12);
        let want = json!({
            "us": 100.0, "least_us": 90.0, "most_us": 110.0, "launches": 5, "bytes": 300_000_000,
            "gb_per_s": 3000.0, "of_copy": 0.75, "ops": 50_000_000_000u64, "tera_per_s": 500.0,
        });
        assert_eq!(record, want);
        let none = timed(times, 0, 0, 4e12);
        assert!(none.get("gb_per_s").is_none() && none.get("tera_per_s").is_none());
    }

    #[test]
    fn four_digits_stay() {
        assert_eq!([0.0, 1.23456, 123_456.0, 0.000_123_456].map(round), [0.0, 1.235, 123_500.0, 0.000_123_5]);
    }
}

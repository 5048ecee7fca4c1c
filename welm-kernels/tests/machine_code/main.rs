//! Tests of the kernels' machine code, which nvcc makes for `sm_80` and `sm_90a` and cuobjdump lists. They check rules
//! for every kernel, and compare its resources with a record, `benches/record/cuda-kernels.md`. No GPU is needed: the
//! tests look at the compiled code, not at its speed.
//!
//! After a change to a kernel,
//!
//! ```sh
//! WELM_UPDATE_MACHINE_CODE=1 WELM_CUOBJDUMP=<path> cargo test -p welm-kernels --features fatbin --test machine_code
//! ```
//!
//! writes the record again. `tests/run` has a cuobjdump at `target/disassembler/cuobjdump`. Known flaws are in the record:
//! an update accepts fewer of them, but not more; `WELM_UPDATE_MACHINE_CODE=worse` accepts more, too. Without
//! `WELM_CUOBJDUMP`, which `tests/run` sets, only the functions of this test are tested.

#![cfg(feature = "fatbin")]

mod launches;
mod occupancy;
mod sass;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use launches::{Launches, WIDTHS, launches};
use occupancy::Limits;
use sass::Code;

const ARCHS: [&str; 2] = ["80", "90a"];
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/record/cuda-kernels.md");
/// Tensor cores by generation (HGMMA, IGMMA: warpgroups), the copy engine, asynchronous copies, matrices to registers.
const NOTABLE: [&str; 8] = ["HGMMA", "IGMMA", "HMMA", "IMMA", "UTMALDG", "UBLKCP", "LDGSTS", "LDSM"];

#[test]
fn machine_code() {
    let Some(cuobjdump) = std::env::var_os("WELM_CUOBJDUMP") else {
        println!("skipped: WELM_CUOBJDUMP names no cuobjdump; tests/run sets it");
        return;
    };
    // cuobjdump calls nvdisasm, which is in the same folder, so a link to cuobjdump has to be resolved.
    let cuobjdump = std::fs::canonicalize(&cuobjdump).unwrap_or_else(|e| panic!("{cuobjdump:?}: {e}"));
    let (stems, promises) = sources();
    let launches = launches();
    let mut kernels = Vec::new();
    let mut wrong = Vec::new();
    for stem in &stems {
        let log = Path::new(env!("OUT_DIR")).join(stem).with_extension("log");
        let log = std::fs::read_to_string(&log).unwrap_or_else(|e| panic!("{log:?}: {e}"));
        // ptxas reports as information, not as a warning, that it ignores setmaxnreg or serialises wgmma.
        wrong.extend(log.lines().filter(|line| line.contains("Performance Loss")).map(str::to_owned));
    }
    for arch in ARCHS {
        for stem in &stems {
            let fatbin = Path::new(env!("OUT_DIR")).join(stem).with_extension("fatbin");
            let dump = |what: &str| {
                let mut command = Command::new(&cuobjdump);
                command.args(["-arch", &format!("sm_{arch}"), what]).arg(&fatbin);
                let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{command:?}: {stderr}");
                let listing = String::from_utf8(output.stdout).expect("text");
                let found = listing.contains(&format!("arch = sm_{arch}\n"));
                assert!(found, "{stem} was built without sm_{arch}: build it without WELM_CUDA_ARCHS");
                listing
            };
            for (name, code) in sass::parse(&dump("-sass"), &dump("-res-usage")) {
                match Kernel::new(arch, &name, &code, &launches, &promises) {
                    Ok(kernel) => {
                        wrong.extend(kernel.wrong(&code));
                        kernels.push(kernel);
                    }
                    Err(reason) => wrong.push(reason),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "not as it should be:\n{}", wrong.join("\n"));
    compare(&kernels);
}

/// Compares with the record, or writes it.
fn compare(kernels: &[Kernel]) {
    let old = std::fs::read_to_string(RECORD).unwrap_or_default();
    let update = std::env::var("WELM_UPDATE_MACHINE_CODE").ok();
    let worse = worse(&known(&old), kernels);
    assert!(
        worse.is_empty() || update.as_deref() == Some("worse"),
        "worse than {RECORD}:\n{}",
        worse.join("\n")
    );
    let new = record(kernels);
    if update.is_some() {
        std::fs::write(RECORD, new).unwrap_or_else(|e| panic!("{RECORD}: {e}"));
    } else if old.contains(&title()) {
        let differs = || old.lines().zip(new.lines()).find(|(old, new)| old != new);
        assert!(old == new, "{RECORD} is out of date, from {:?} on; see the head of this test", differs());
    } else {
        // Another compiler makes other code. The rules were checked all the same.
        println!("not compared: {RECORD} is of another release than {:?}", title());
    }
}

/// The stems of the sources; and for each kernel the numbers in its `KERNEL` line: threads, blocks a multiprocessor.
fn sources() -> (Vec<String>, BTreeMap<String, (u32, u32)>) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
    let paths = std::fs::read_dir(dir).expect(dir).map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    paths.sort();
    let mut promises = BTreeMap::new();
    for path in &paths {
        let source = std::fs::read_to_string(path).expect("text");
        for line in source.lines() {
            let Some(arguments) = line.strip_prefix("KERNEL(").and_then(|line| line.split(')').next()) else {
                continue;
            };
            let words: Vec<_> = arguments.split(',').map(str::trim).collect();
            let number = |i: usize| words.get(i).and_then(|word| word.parse().ok());
            let (Some(threads), Some(blocks)) = (number(2), number(3)) else {
                panic!("{}: numbers are expected in {line}", path.display());
            };
            promises.insert(words[0].to_owned(), (threads, blocks));
        }
    }
    let stem = |path: &std::path::PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    (paths.iter().map(stem).collect(), promises)
}

/// A line of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kernel {
    arch: &'static str,
    name: String,
    threads: u32,
    registers: u32,
    shared: u32,
    /// Blocks a multiprocessor: promised, held by registers, held.
    promised: u32,
    by_registers: u32,
    blocks: u32,
    instructions: usize,
    /// Loads and stores of device memory, each with how many of them are of 16 bytes.
    loads: [usize; 2],
    stores: [usize; 2],
    elections: usize,
    notable: String,
}

impl Kernel {
    fn new(
        arch: &'static str,
        name: &str,
        code: &Code,
        launches: &Launches,
        promises: &BTreeMap<String, (u32, u32)>,
    ) -> Result<Kernel, String> {
        let grid = launches.get(name).ok_or_else(|| format!("{name}: no launcher starts it"))?;
        let &(threads, promised) = promises.get(name).ok_or_else(|| format!("{name}: no KERNEL line"))?;
        if grid.threads != threads {
            return Err(format!("{name}: compiled for {threads} threads, launched with {}", grid.threads));
        }
        let shared = grid.shared_bytes;
        let (by_registers, blocks) = Limits::of(arch).blocks(threads, code.registers, shared);
        let both = |name: &str| [code.count(name), code.count(&format!("{name}.128"))];
        let notable = NOTABLE.iter().map(|name| (code.count(name), name)).filter(|&(count, _)| count > 0);
        let notable: Vec<_> = notable.map(|(count, name)| format!("{count} {name}")).collect();
        Ok(Kernel {
            arch,
            name: name.to_owned(),
            threads,
            registers: code.registers,
            shared,
            promised,
            by_registers,
            blocks,
            instructions: code.instructions.len(),
            loads: both("LDG"),
            stores: both("STG"),
            elections: code.copies_in_elections(),
            notable: notable.join(", "),
        })
    }

    /// The rules for every kernel that this one breaks.
    fn wrong(&self, code: &Code) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, reason: String| {
            if !good {
                wrong.push(format!("{} on sm_{}: {reason}", self.name, self.arch));
            }
        };
        let memory = [code.stack, code.local, (code.count("LDL") + code.count("STL")) as u32];
        check(memory == [0; 3], format!("{memory:?} bytes of stack, bytes of local memory, accesses to it"));
        // On sm_90 the system adds 1 KiB to a kernel that uses shared memory.
        let system = if self.arch == "80" { 0 } else { 1024 };
        check(code.shared <= system, format!("{} bytes of static shared memory", code.shared));
        let promised = self.promised;
        check(
            self.by_registers >= promised,
            format!("{} of {promised} blocks by registers", self.by_registers),
        );
        check(self.blocks > 0, format!("{} bytes of shared memory fit no multiprocessor", self.shared));
        if self.name.contains("_sm90") {
            let products = code.count("HGMMA") + code.count("IGMMA");
            let copies = code.count("UTMALDG");
            check(
                products > 0 && copies > 0,
                format!("{products} warpgroup products, {copies} copies of tiles"),
            );
            let moved = code.moved_registers();
            let given: Vec<_> = moved.iter().filter(|(take, _)| !take).map(|&(_, n)| n).collect();
            let taken: Vec<_> = moved.iter().filter(|(take, _)| *take).map(|&(_, n)| n).collect();
            check(given == [24], format!("producers keep {given:?} registers, not 24"));
            let producers = code.producer_registers();
            check(producers.is_some_and(|n| n <= 24), format!("producers use {producers:?} registers"));
            // A warpgroup that takes registers waits until they are free. If it takes more than there are, it waits for
            // ever.
            let groups = self.threads / 128;
            let most = taken.iter().max().map_or(u32::MAX, |take| 24 + (groups - 1) * take);
            let there = groups * self.registers;
            check(most <= there, format!("{taken:?} are taken, {most} in all of {there}"));
        } else {
            check(code.moved_registers().is_empty(), "it moves registers".to_owned());
        }
        wrong
    }

    /// Counts of two flaws: copies in election loops, and blocks that are promised but do not fit.
    fn flaws(&self) -> [u32; 2] {
        [self.elections as u32, self.promised.saturating_sub(self.blocks)]
    }

    fn line(&self) -> String {
        let Kernel { name, threads, registers, shared, blocks, promised, instructions, notable, .. } = self;
        let of = |[all, wide]: [usize; 2]| format!("{wide} of {all}");
        let (loads, stores, elections) = (of(self.loads), of(self.stores), self.elections);
        let cells =
            format!("{name} | {threads} | {registers} | {shared} | {blocks} of {promised} | {instructions}");
        format!("| {cells} | {loads} | {stores} | {elections} | {notable} |")
    }
}

/// What got worse: flaws by architecture and kernel, before and now.
fn worse(known: &BTreeMap<(String, String), [u32; 2]>, kernels: &[Kernel]) -> Vec<String> {
    let mut worse = Vec::new();
    for kernel in kernels {
        let before = known.get(&(kernel.arch.to_owned(), kernel.name.clone())).copied().unwrap_or_default();
        let now = kernel.flaws();
        if now[0] > before[0] || now[1] > before[1] {
            worse.push(format!(
                "{} on sm_{}: {} copies in election loops, {} before; {} blocks short of {}, {} before",
                kernel.name, kernel.arch, now[0], before[0], now[1], kernel.promised, before[1]
            ));
        }
    }
    worse
}

/// The flaws that are in a record, by architecture and kernel.
fn known(record: &str) -> BTreeMap<(String, String), [u32; 2]> {
    let (mut known, mut arch) = (BTreeMap::new(), "");
    for line in record.lines() {
        arch = line.strip_prefix("## sm_").unwrap_or(arch);
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, _, _, _, blocks, _, _, _, elections, ..] = cells[..] else { continue };
        let blocks = blocks.split_once(" of ").map(|(held, promised)| (held.parse(), promised.parse()));
        if let (Ok(elections), Some((Ok(held), Ok(promised)))) = (elections.parse(), blocks) {
            let short = u32::saturating_sub(promised, held);
            known.insert((arch.to_owned(), name.to_owned()), [elections, short]);
        }
    }
    known
}

/// The release of the compiler, as build.rs wrote it.
fn title() -> String {
    let code = include_str!(concat!(env!("OUT_DIR"), "/code.rs"));
    let release =
        code.split_once("release: (").and_then(|(_, rest)| rest.split_once(')')).expect("a release").0;
    format!("nvcc {}, by", release.replace(", ", "."))
}

/// The record's text.
fn record(kernels: &[Kernel]) -> String {
    let mut text = format!(
        "# What the CUDA kernels are compiled to

{} `welm-kernels/tests/machine_code`, which compares this and says how to write it again. Static:
nothing here was run on a GPU.

Registers are per thread, before `setmaxnreg` moves them between the warpgroups of a block; shared memory is in bytes
per block, as the launchers ask for it (norms of {WIDTHS:?} columns). Blocks are those that a multiprocessor holds, of
those that `KERNEL` promises: by registers every promise is kept, and where fewer are held, shared memory is what lacks.
Loads and stores are instructions on device memory: how many of them move 16 bytes a thread. Elections are bulk
copies that the compiler put into a loop over the threads of a warp.

That no kernel has a stack, spills or local memory, and that the producers of `sm90` kernels give back all but 24
registers and use no more, the same test asserts.
",
        title()
    );
    for arch in ARCHS {
        let head = "kernel | threads | registers | shared | blocks | instructions | 16-byte loads | 16-byte stores | elections | notable";
        let rule = "---|".repeat(10);
        write!(text, "\n## sm_{arch}\n\n| {head} |\n|{rule}\n").expect("a string takes it");
        let mut of_arch: Vec<_> = kernels.iter().filter(|kernel| kernel.arch == arch).collect();
        of_arch.sort_by_key(|kernel| &kernel.name);
        for kernel in of_arch {
            writeln!(text, "{}", kernel.line()).expect("a string takes it");
        }
    }
    text
}

#[test]
fn flaws_may_only_become_fewer() {
    let kernel = |elections, blocks| Kernel {
        arch: "90a",
        name: "product".into(),
        threads: 384,
        registers: 168,
        shared: 1024,
        promised: 2,
        by_registers: 2,
        blocks,
        instructions: 100,
        loads: [3, 1],
        stores: [2, 2],
        elections,
        notable: "1 HGMMA".into(),
    };
    let known = known(&record(&[kernel(5, 1)]));
    assert_eq!(known, BTreeMap::from([(("90a".into(), "product".into()), [5, 1])]));
    for (elections, blocks, good) in [(5, 1, true), (0, 2, true), (6, 1, false), (0, 0, false)] {
        assert_eq!(worse(&known, &[kernel(elections, blocks)]).is_empty(), good, "{elections} {blocks}");
    }
    // A new kernel has no flaws.
    assert!(!worse(&BTreeMap::new(), &[kernel(1, 2)]).is_empty());
}

#[test]
fn faults_in_the_code_are_found() {
    let launches = Launches::from([("a_sm90", grid(384, 0)), ("b", grid(128, 0))]);
    let promises = BTreeMap::from([("a_sm90".into(), (384, 1)), ("b".into(), (256, 1))]);
    let code = Code { registers: 168, stack: 8, shared: 1024, ..Code::default() };
    let kernel = Kernel::new("90a", "a_sm90", &code, &launches, &promises).unwrap();
    let wrong = kernel.wrong(&code).join("\n");
    for reason in ["of stack", "0 warpgroup products", "keep [] registers", "producers use None", "are taken"]
    {
        assert!(wrong.contains(reason), "{reason}: {wrong}");
    }
    let threads = Kernel::new("90a", "b", &code, &launches, &promises).unwrap_err();
    assert!(threads.contains("compiled for 256 threads, launched with 128"), "{threads}");
    assert!(Kernel::new("90a", "c", &code, &launches, &promises).unwrap_err().contains("no launcher"));
}

fn grid(threads: u32, shared_bytes: u32) -> welm_kernels::driver::Grid {
    welm_kernels::driver::Grid { blocks: [1; 3], threads, shared_bytes }
}

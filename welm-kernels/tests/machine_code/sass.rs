//! Machine code as cuobjdump lists it.

use std::collections::{BTreeMap, BTreeSet};

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) address: u32,
    /// Whether it has a predicate, so that the next one can run without it.
    predicated: bool,
    /// `LDG.E.128`.
    pub(crate) opcode: String,
    operands: String,
}

impl Instruction {
    /// `        /*0040*/               @P0 BRA 0x1a0 ;      /* 0x... */`
    fn parse(line: &str) -> Option<Instruction> {
        let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
        let text = rest.split_once(';')?.0.trim();
        let (predicated, text) = match text.strip_prefix('@') {
            Some(text) => (true, text.split_once(' ')?.1.trim_start()),
            None => (false, text),
        };
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        let address = u32::from_str_radix(address, 16).ok()?;
        Some(Instruction { address, predicated, opcode: opcode.into(), operands: operands.into() })
    }

    /// `BRA` of `BRA.U.ANY`.
    pub(crate) fn name(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    fn is(&self, part: &str) -> bool {
        self.opcode.split('.').any(|p| p == part)
    }

    /// Where it may go on, besides the next one: an operand of a jump that is an address.
    fn target(&self) -> Option<u32> {
        let jumps = ["BRA", "BSSY", "CALL", "WARPSYNC", "BRX", "JMP"].contains(&self.name());
        let hex = self.operands.rsplit([' ', ',']).find_map(|word| word.strip_prefix("0x"))?;
        jumps.then(|| u32::from_str_radix(hex, 16).ok()).flatten()
    }

    /// The number after the last `0x`.
    fn immediate(&self) -> Option<u32> {
        u32::from_str_radix(self.operands.rsplit_once("0x")?.1.trim(), 16).ok()
    }

    /// The highest general register that it names, those of a vector included.
    fn highest_register(&self) -> Option<u32> {
        let more = if self.is("128") { 3 } else { u32::from(self.is("64")) };
        let number = |word: &str| word.strip_prefix('R')?.parse::<u32>().ok();
        let highest = |operand: &str| {
            let words = operand.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            // An address is one register or two, whatever lies there.
            let vector = if operand.contains('[') { u32::from(operand.contains(".64")) } else { more };
            Some(words.filter_map(number).max()? + vector)
        };
        self.operands.split(',').filter_map(highest).max()
    }
}

/// The code of a kernel, and its resources.
#[derive(Debug, Clone, Default)]
pub(crate) struct Code {
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) registers: u32,
    pub(crate) stack: u32,
    pub(crate) local: u32,
    /// Static shared memory, the system's included.
    pub(crate) shared: u32,
}

impl Code {
    /// Instructions of this opcode, `LDG` being any load and `LDG.128` one of 16 bytes.
    pub(crate) fn count(&self, opcode: &str) -> usize {
        let mut parts = opcode.split('.');
        let (name, part) = (parts.next().unwrap_or_default(), parts.next());
        let fits = |i: &&Instruction| i.name() == name && part.is_none_or(|part| i.is(part));
        self.instructions.iter().filter(fits).count()
    }

    /// Copies by the copy engine that are in an election loop. The compiler adds this loop, over the threads of a warp,
    /// where it cannot prove that only one thread starts the copy.
    pub(crate) fn copies_in_elections(&self) -> usize {
        let loops = self.instructions.iter().filter(|i| i.name() == "BRA" && i.is("ANY"));
        let loops: Vec<_> = loops.filter_map(|i| Some(i.target()?..i.address)).collect();
        let copies = self.instructions.iter().filter(|i| ["UBLKCP", "UTMALDG"].contains(&i.name()));
        copies.filter(|copy| loops.iter().any(|range| range.contains(&copy.address))).count()
    }

    /// How many registers the warpgroups take (`true`) and give back, in the order of the code.
    pub(crate) fn moved_registers(&self) -> Vec<(bool, u32)> {
        let moves = self.instructions.iter().filter(|i| i.name() == "USETMAXREG");
        moves.map(|i| (i.is("TRY_ALLOC"), i.immediate().expect("a number of registers"))).collect()
    }

    /// Registers that are named anywhere after registers are given back.
    pub(crate) fn producer_registers(&self) -> Option<u32> {
        let at: BTreeMap<u32, usize> =
            self.instructions.iter().enumerate().map(|(i, instruction)| (instruction.address, i)).collect();
        let gives = |i: &Instruction| i.name() == "USETMAXREG" && !i.is("TRY_ALLOC");
        let mut open = vec![self.instructions.iter().position(gives)?];
        let (mut seen, mut highest) = (BTreeSet::new(), None);
        while let Some(i) = open.pop() {
            let Some(instruction) = self.instructions.get(i).filter(|_| seen.insert(i)) else { continue };
            highest = highest.max(instruction.highest_register());
            // If the condition of a jump is an operand, it is the first operand.
            let ends = !instruction.predicated
                && match instruction.name() {
                    "BRA" | "JMP" => instruction.operands.starts_with("0x"),
                    "EXIT" | "RET" => true,
                    _ => false,
                };
            open.extend(instruction.target().and_then(|target| at.get(&target)));
            open.extend((!ends).then_some(i + 1));
        }
        highest.map(|register| register + 1)
    }
}

/// The kernels in what `cuobjdump -sass` and `cuobjdump -res-usage` say of one architecture.
pub(crate) fn parse(listing: &str, resources: &str) -> BTreeMap<String, Code> {
    let mut kernels: BTreeMap<String, Code> = BTreeMap::new();
    let mut name = None;
    for line in listing.lines() {
        if let Some((_, function)) = line.split_once("Function : ") {
            name = Some(function.trim().to_owned());
        } else if let (Some(name), Some(instruction)) = (&name, Instruction::parse(line)) {
            kernels.entry(name.clone()).or_default().instructions.push(instruction);
        }
    }
    let mut name = None;
    for line in resources.lines() {
        if let Some((_, function)) = line.split_once(" Function ") {
            name = Some(function.trim_end_matches(':').to_owned());
        } else if let Some(code) = name.take().and_then(|name| kernels.get_mut(&name)) {
            let value = |field: &str| {
                let word =
                    line.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix(':'));
                word.and_then(|number| number.parse().ok())
                    .unwrap_or_else(|| panic!("no {field} in {line:?}"))
            };
            (code.registers, code.stack) = (value("REG"), value("STACK"));
            (code.local, code.shared) = (value("LOCAL"), value("SHARED"));
        }
    }
    kernels
}

/// A producer as nvcc 13.0 compiled it when each copy was in an election loop.
const PRODUCER: &str = "
\t\tFunction : product
        /*0000*/                   ISETP.NE.AND P0, PT, R200, RZ, PT ;             /* 0x000000ff0200720c */
                                                                                   /* 0x001fda0003f05270 */
        /*0010*/               @P0 BRA 0x60 ;                                      /* 0x0000000000540947 */
        /*0020*/                   USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0 ;        /* 0x000000f0000079c8 */
        /*0030*/                   LDG.E.NA.128.CONSTANT R4, desc[UR4][R2.64] ;    /* 0x000000f0000079c8 */
        /*0040*/                   STG.E desc[UR4][R2.64], R150 ;                  /* 0x000000f0000079c8 */
        /*0050*/                   EXIT ;                                          /* 0x000000000000794d */
        /*0060*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18 ;               /* 0x00000018000079c8 */
        /*0070*/                   LDS.128 R12, [R20] ;                            /* 0x00000018000079c8 */
        /*0080*/               @P0 ELECT P1, URZ, PT ;                             /* 0x00000000003f082f */
        /*0090*/                   UTMALDG.2D [UR8], [UR26] ;                      /* 0x000000081a0075b4 */
        /*00a0*/              @P1 PLOP3.LUT P0, PT, P1, PT, PT, 0x8, 0x0 ;         /* 0x000000000000181c */
        /*00b0*/               @P0 BRA.U.ANY 0x80 ;                                /* 0xfffffffd00ec0947 */
        /*00c0*/                   UBLKCP.S.G [UR34], [UR26], UR33 ;               /* 0x000000221a0073ba */
        /*00d0*/                   EXIT ;                                          /* 0x000000000000794d */
        /*00e0*/                   BRA 0xe0;                                       /* 0xfffffffc00fc7947 */
";

const RESOURCES: &str = " Function product:
  REG:168 STACK:8 SHARED:1024 LOCAL:4 CONSTANT[0]:832 TEXTURE:0 SURFACE:0 SAMPLER:0";

#[test]
fn a_listing_is_read() {
    let kernels = parse(PRODUCER, RESOURCES);
    let code = &kernels["product"];
    assert_eq!((code.registers, code.stack, code.shared, code.local), (168, 8, 1024, 4));
    assert_eq!((code.count("LDG"), code.count("LDG.128"), code.count("STG.128")), (1, 1, 0));
    assert_eq!(code.moved_registers(), [(true, 240), (false, 24)]);
    // One copy is in a loop, the other is not.
    assert_eq!((code.count("UTMALDG") + code.count("UBLKCP"), code.copies_in_elections()), (2, 1));
    // Neither R150 nor R200 is the producer's; R20 is, and stands above R12 to R15.
    assert_eq!(code.producer_registers(), Some(21));
}

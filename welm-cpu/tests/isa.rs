//! Compares every instruction set with the scalar reference.

use half::{bf16, f16};
use welm_cpu::isa::{BIAS, GROUP, Isa, Kernel, LANES, ROTATED, Simd};

struct Everything<'a> {
    f: &'a [f32],
    w: &'a [u8],
    x: &'a [i8],
}

impl Kernel for Everything<'_> {
    type Out = Vec<u32>;
    const DOTS: bool = true;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<u32> {
        let mut bits = Vec::new();
        let mut keep = |v: [f32; LANES]| bits.extend(v.map(f32::to_bits));
        // SAFETY: the test gives 64 floats, 512 u8 and 64 i8; the instructions are `S`'s.
        unsafe {
            let out = |v: S::V| {
                let mut o = [0.0; LANES];
                S::store(o.as_mut_ptr(), v);
                o
            };
            let p = self.f.as_ptr();
            let (a, b, c) = (S::load(p), S::load(p.add(16)), S::load(p.add(32)));
            keep(out(S::fma(a, b, c)));
            keep(out(S::add(S::mul(a, b), S::splat(0.1))));
            keep(out(S::splat(S::sum(S::fma(a, b, c)))));
            for sum in S::sums([a, b, c, S::fma(a, b, c)]).into_iter().chain(S::sums([b])) {
                keep(out(S::splat(sum)));
            }
            let brains: Vec<bf16> = self.f.iter().map(|&x| bf16::from_f32(x)).collect();
            keep(out(S::load_bf16(brains.as_ptr())));
            let halves: Vec<f16> = self.f.iter().map(|&x| f16::from_f32(x)).collect();
            keep(out(S::load_f16(halves.as_ptr())));
            keep(out(S::sub(a, b)));
            keep(out(S::div(a, b)));
            keep(out(S::max(a, b)));
            keep(out(S::if_greater(a, b, c, S::splat(7.0))));
            let odd = S::load([f32::NAN, 1.0, -0.0, 0.0, f32::INFINITY, -3.0, 1e-40, 5.0].repeat(2).as_ptr());
            keep(out(S::max(odd, S::splat(0.0))));
            keep(out(S::if_greater(S::splat(1.0), odd, a, b)));
            keep(out(S::to_exponent(S::add(a, S::splat(12_583_039.0)))));
            let mut narrow = [bf16::ZERO; 2 * LANES];
            S::store_bf16(narrow.as_mut_ptr(), a);
            S::store_bf16(narrow.as_mut_ptr().add(LANES), odd);
            keep(std::array::from_fn(|i| narrow[i].to_f32()));
            keep(std::array::from_fn(|i| narrow[LANES + i].to_f32()));
            // The largest, what is rounded to it and what is not, subnormal values, ties.
            let edges = [65_504.0, 65_519.99, 65_520.0, -1e9, 6e-8, -3e-8, 2.5e-5, 1.000_488_3];
            for values in [a, odd, S::load(edges.repeat(2).as_ptr())] {
                let mut halves = [f16::ZERO; LANES];
                S::store_f16(halves.as_mut_ptr(), values);
                keep(std::array::from_fn(|i| halves[i].to_f32()));
            }
            S::prefetch(std::ptr::null::<f32>());
            let x = [self.x.as_ptr(), self.x.as_ptr().add(32)];
            let acc = [S::splat_i32(-77), S::splat_i32(12_345)];
            let [r0, r1] = S::dot_group::<2, 8>(self.w.as_ptr(), x, acc);
            let [r0, r1] = S::dot_group::<2, 8>(self.w.as_ptr(), [x[1], x[0]], [r0, r1]);
            let [r0, r1] = S::dot_group::<2, 4>(self.w.as_ptr(), x, [r0, r1]);
            keep(out(S::to_f32(r0)));
            keep(out(S::to_f32(S::join(r1, r0))));
            keep(out(S::from_bits(r0)));
            keep(out(S::unbias(S::splat_i32(BIAS.to_bits().cast_signed() - 4_194_303))));
            let [r0, r1] = S::dot_group4(self.w.as_ptr(), x);
            keep(out(S::to_f32(r0)));
            keep(out(S::to_f32(r1)));
            keep(out(S::load_i8(self.x.as_ptr())));
            let bytes = S::load_bytes(self.w.as_ptr());
            let mut table = [0; 16];
            table.copy_from_slice(&self.w[64..80]);
            for byte in [
                S::bits(bytes, 3, 17),
                S::bits(bytes, -4, 48),
                S::either(S::bits(bytes, 0, 3), S::bits(bytes, -2, 4)),
                S::add_byte(bytes, 129),
                S::look_up(&table, S::bits(bytes, 4, 15)),
            ] {
                let mut kept = [0; 64];
                S::store_bytes(kept.as_mut_ptr(), byte);
                for sixteen in kept.as_chunks::<16>().0 {
                    keep(sixteen.map(f32::from));
                }
            }
            let mut rotated = [0.0; ROTATED];
            S::rotate(self.f.try_into().unwrap(), &mut rotated);
            bits.extend(rotated.map(f32::to_bits));
            let groups: [[[f32; GROUP]; 2]; 8] = std::array::from_fn(|r| {
                let value = |i: usize| self.f[(i + 5 * r) % 64] * (0.2 + (r * 3 % 8) as f32);
                std::array::from_fn(|tile| std::array::from_fn(|k| value(GROUP * tile + k)))
            });
            let largest = S::largest_bits(groups.each_ref().map(<[_; 2]>::as_slice));
            bits.extend(largest);
            let tiles = groups.each_ref().map(|group| &group[1]);
            for wide in [false, true] {
                let steps = if wide { 32_512.0 } else { 127.0 };
                let inverse = largest.map(|largest| steps / f32::from_bits(largest));
                let (mut lo, mut hi) = ([[0; GROUP]; 8], [[0; GROUP]; 8]);
                let sums = match wide {
                    true => S::quantize::<true>(tiles, &inverse, &mut lo, &mut hi),
                    false => S::quantize::<false>(tiles, &inverse, &mut lo, &mut hi),
                };
                let bytes = lo.iter().chain(&hi).flatten();
                bits.extend(bytes.map(|&q| i32::from(q).cast_unsigned()));
                bits.extend([sums.0, sums.1].iter().flatten().flatten().map(|s| s.cast_unsigned()));
            }
        }
        bits
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_scalar_reference() {
    for round in 0..50u32 {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(round * 40_503)) >> 8;
        let f: Vec<f32> = (0..64).map(|i| (noise(i) % 20_000) as f32 / 777.0 - 12.0).collect();
        let mut w: Vec<u8> = (0..512).map(|i| noise(i + 64) as u8).collect();
        let mut x: Vec<i8> = (0..64).map(|i| noise(i + 600) as i8).collect();
        if round == 0 {
            w.fill(255);
            x.fill(-128);
        }
        // SAFETY: lengths as the kernel asks.
        let run = |isa: Isa| unsafe { isa.dispatch(Everything { f: &f, w: &w, x: &x }) };
        let want = run(Isa::all()[0]);
        for isa in Isa::all() {
            assert_eq!(run(isa), want, "{} in round {round}", isa.name());
        }
    }
}

//! Both norms against their formulas.

use welm_cpu::isa::Isa;
use welm_cpu::norm::{Norm, norm_add_row, norm_row};

#[test]
fn both_formulas_hold_and_all_instruction_sets_agree() {
    for dim in [1, 7, 16, 33, 100] {
        let x: Vec<f32> = (0..dim).map(|i| (i * i % 17) as f32 - 5.0 + 300.0).collect();
        let w: Vec<f32> = (0..dim).map(|i| i as f32 / 10.0 - 1.0).collect();
        let b: Vec<f32> = (0..dim).map(|i| 0.3 - i as f32 / 20.0).collect();
        for bias in [None, Some(b.clone())] {
            let norm = Norm { weight: &w, bias: bias.as_deref(), eps: 1e-5 };
            let run = |isa: Isa| {
                let mut out = vec![0.0; dim];
                norm_row(isa, &x, norm, &mut out);
                out
            };
            let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let mean = if bias.is_some() { wide.iter().sum::<f64>() / dim as f64 } else { 0.0 };
            let var = wide.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
            let want = run(Isa::all()[0]);
            for k in 0..dim {
                let y = (wide[k] - mean) / (var + 1e-5).sqrt() * f64::from(w[k])
                    + bias.as_ref().map_or(0.0, |b| f64::from(b[k]));
                assert!((f64::from(want[k]) - y).abs() < 2e-3, "{} {y}", want[k]);
            }
            for isa in Isa::all() {
                assert_eq!(run(isa), want, "{}", isa.name());
                let (mut y, mut to) = (x.clone(), w.clone());
                norm_add_row(isa, &mut y, norm, &mut to);
                let added: Vec<f32> = w.iter().zip(&want).map(|(w, y)| w + y).collect();
                assert_eq!(to, added, "{}, added", isa.name());
            }
        }
    }
}

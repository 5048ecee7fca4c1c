//! Which keys a token sees. Attention itself is tested where threads share it, in `welm-core`.

use welm_cpu::attention::Scores;

#[test]
fn a_window_ends_at_the_token_itself() {
    let first = |window, pos| Scores { window, scale: 1.0, soft_cap: None }.first_key(pos);
    assert_eq!([first(None, 9), first(Some(1), 9), first(Some(4), 9), first(Some(10), 9)], [0, 9, 6, 0]);
    assert_eq!([first(Some(usize::MAX), 9), first(Some(4), 3), first(Some(4), 4)], [0, 0, 1]);
}

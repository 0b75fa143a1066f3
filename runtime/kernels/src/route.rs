//! The choice of experts. It reads a few hundred numbers a row, so one portable kernel serves every CPU.

use crate::math::exp;
use bessemer_format::plan::{Choice, Score};

/// Chooses the experts of one row: [`Route`](bessemer_format::plan::Route) says how. `logits` has a number an expert, `bias` too where
/// there is one, `chosen` gets `top_k` numbers, best first. `keys` is memory to work in: its content does not matter.
///
/// Whatever the logits are (NaN included), `chosen` gets different experts that exist.
///
/// # Panics
/// If the lengths disagree, or `choice` does not [fit](Choice::check) the number of experts.
pub fn route_row(
    choice: &Choice,
    logits: &[f32],
    bias: Option<&[f32]>,
    chosen: &mut [i32],
    keys: &mut Vec<f32>,
) {
    let experts = logits.len();
    assert!(choice.check(experts as u64).is_ok(), "{choice:?} of {experts} experts");
    assert_eq!(chosen.len(), choice.top_k as usize, "a row chooses top_k experts");
    keys.clear();
    match choice.score {
        Score::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            keys.extend(logits.iter().map(|x| exp(x - max)));
            let total: f32 = keys.iter().sum();
            keys.iter_mut().for_each(|key| *key /= total);
        }
        Score::Sigmoid => keys.extend(logits.iter().map(|x| 1.0 / (1.0 + exp(-x)))),
    }
    if let Some(bias) = bias {
        assert_eq!(bias.len(), experts, "a bias an expert");
        keys.iter_mut().zip(bias).for_each(|(key, b)| *key += b);
    }
    // Whoever is taken, or does not take part, gets a key that loses against every other.
    keys.iter_mut().for_each(|key| *key = if *key > OUT { *key } else { LEAST });
    let size = experts / choice.groups as usize;
    if choice.best_groups < choice.groups {
        close_groups(choice, size, keys);
    }
    for slot in chosen {
        let best = argmax(keys);
        keys[best] = OUT;
        *slot = best as i32;
    }
}

/// The key of an expert that cannot be chosen.
const OUT: f32 = f32::NEG_INFINITY;
/// The smallest key of one that can: also that of NaN.
const LEAST: f32 = f32::MIN;

/// The first index of the largest number.
fn argmax(keys: &[f32]) -> usize {
    let mut best = 0;
    for (i, key) in keys.iter().enumerate() {
        if *key > keys[best] {
            best = i;
        }
    }
    best
}

/// Takes the experts out that are in none of the best groups.
fn close_groups(choice: &Choice, size: usize, keys: &mut Vec<f32>) {
    let experts = keys.len();
    keys.resize(experts + choice.groups as usize + size, 0.0);
    let (expert_keys, rest) = keys.split_at_mut(experts);
    let (group_keys, members) = rest.split_at_mut(choice.groups as usize);
    for (keys, group_key) in expert_keys.chunks_exact(size).zip(&mut *group_keys) {
        members.copy_from_slice(keys);
        let mut sum = 0.0;
        for _ in 0..choice.group_keys {
            let best = argmax(members);
            sum += members[best];
            members[best] = OUT;
        }
        *group_key = if sum > OUT { sum } else { LEAST };
    }
    for _ in 0..choice.best_groups {
        let best = argmax(group_keys);
        group_keys[best] = OUT;
    }
    for (keys, group_key) in expert_keys.chunks_exact_mut(size).zip(group_keys) {
        if *group_key != OUT {
            keys.fill(OUT);
        }
    }
    keys.truncate(experts);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(choice: Choice, logits: &[f32], bias: Option<&[f32]>) -> Vec<i32> {
        let mut out = vec![-1; choice.top_k as usize];
        route_row(&choice, logits, bias, &mut out, &mut vec![f32::NAN; 3]);
        out
    }

    fn plain(top_k: u32, score: Score) -> Choice {
        Choice { top_k, score, groups: 1, best_groups: 1, group_keys: 1 }
    }

    #[test]
    fn the_best_come_first_and_ties_go_to_the_smaller_number() {
        for score in [Score::Softmax, Score::Sigmoid] {
            assert_eq!(chosen(plain(3, score), &[0.5, 2.0, -1.0, 2.0, 0.5], None), [1, 3, 0]);
        }
        let bias = [0.0, -1.0, 0.0, 0.0, 0.25];
        assert_eq!(chosen(plain(2, Score::Sigmoid), &[0.5, 2.0, -1.0, 2.0, 0.5], Some(&bias)), [3, 4]);
    }

    #[test]
    fn groups_that_lose_take_no_part() {
        // Two keys a group: group 1 has the largest key, but group 0 the largest sum.
        let logits = [1.0, 0.9, -9.0, 1.5, -9.0, -9.0, 0.3, 0.2, 0.1];
        let by = |group_keys| Choice { groups: 3, best_groups: 1, group_keys, ..plain(2, Score::Sigmoid) };
        assert_eq!(chosen(by(1), &logits, None), [3, 4]);
        assert_eq!(chosen(by(2), &logits, None), [0, 1]);
        // Equal groups: the first.
        assert_eq!(chosen(by(1), &[0.0; 9], None), [0, 1]);
    }

    #[test]
    fn nothing_that_logits_hold_gives_an_expert_twice_or_none() {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN, f32::MAX, 0.0, -0.0, f32::NAN];
        for score in [Score::Softmax, Score::Sigmoid] {
            for (groups, best_groups, group_keys) in [(1, 1, 1), (4, 2, 2), (2, 2, 1), (8, 8, 1)] {
                let choice = Choice { groups, best_groups, group_keys, ..plain(4, score) };
                for rotation in 0..8 {
                    let mut logits = odd;
                    logits.rotate_left(rotation);
                    let mut found = chosen(choice, &logits, Some(&odd));
                    found.sort_unstable();
                    found.dedup();
                    assert!(found.len() == 4 && found.iter().all(|e| (0..8).contains(e)), "{found:?}");
                }
            }
        }
    }
}

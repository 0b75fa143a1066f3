//! Of several choices for each of some items, the ones that lose least in every size: a knapsack with one choice an item, by dynamic
//! programming over sizes. Exact but for sizes being counted in steps.

use std::cmp::Ordering;

/// What can be chosen for an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes.
    pub size: u64,
    /// What it loses. Losses add up.
    pub loss: f64,
}

/// A choice for every item.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Which of the item's choices, for each item.
    pub choices: Vec<usize>,
    /// Of all together.
    pub size: u64,
    /// Of all together.
    pub loss: f64,
}

/// Sizes are told apart in so many steps an item.
const STEPS_AN_ITEM: usize = 128;
/// And in at most so many.
const STEPS: usize = 1 << 14;

/// The assignments that nothing of their size betters, from the smallest to the one that loses least. None if an item has no choice.
pub fn frontier(items: &[Vec<Choice>]) -> Vec<Assignment> {
    let bounds = items.iter().map(|choices| {
        let sizes = choices.iter().map(|c| c.size);
        sizes.clone().min().zip(sizes.max())
    });
    let Some(bounds) = bounds.collect::<Option<Vec<_>>>() else { return Vec::new() };
    let spread: u64 = bounds.iter().map(|(min, max)| max - min).sum();
    let steps = (items.len() * STEPS_AN_ITEM).clamp(1, STEPS);
    let step = spread.div_ceil(steps as u64).max(1);
    let places = (spread / step) as usize + items.len() + 1;

    // The least loss of the items so far in at most so many steps beyond their smallest choices, and the last item's choice for it.
    let mut best = vec![0f64; places];
    let mut taken = Vec::with_capacity(items.len());
    for (choices, (min, _)) in items.iter().zip(&bounds) {
        let mut next = vec![(f64::INFINITY, 0u16); places];
        for (i, choice) in choices.iter().enumerate() {
            let steps = (choice.size - min).div_ceil(step) as usize;
            for (place, found) in next.iter_mut().enumerate().skip(steps) {
                let loss = best[place - steps] + choice.loss;
                if loss < found.0 {
                    *found = (loss, i as u16);
                }
            }
        }
        best = next.iter().map(|(loss, _)| *loss).collect();
        taken.push(next.into_iter().map(|(_, choice)| choice).collect::<Vec<_>>());
    }

    let mut found: Vec<Assignment> = Vec::new();
    for place in 0..places {
        if place > 0 && best[place] >= best[place - 1] {
            continue;
        }
        let mut left = place;
        let mut choices = vec![0; items.len()];
        for (i, ((item, (min, _)), taken)) in items.iter().zip(&bounds).zip(&taken).enumerate().rev() {
            choices[i] = usize::from(taken[left]);
            left -= (item[choices[i]].size - min).div_ceil(step) as usize;
        }
        let chosen = || items.iter().zip(&choices).map(|(item, i)| item[*i]);
        let (size, loss) = (chosen().map(|c| c.size).sum(), chosen().map(|c| c.loss).sum());
        found.push(Assignment { choices, size, loss });
    }
    // Counting in steps may leave one that another betters.
    found.sort_by(|a, b| a.size.cmp(&b.size).then(a.loss.partial_cmp(&b.loss).unwrap_or(Ordering::Equal)));
    let mut least = f64::INFINITY;
    found.retain(|a| {
        let better = a.loss < least;
        least = least.min(a.loss);
        better
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use bessemer_ir::recipe::uniform;

    #[test]
    fn every_point_is_the_best_of_its_size() {
        for seed in 0..20 {
            let number = |i: usize| f64::from(uniform(seed, i as u64)) + 1.0;
            let items: Vec<Vec<Choice>> = (0..5)
                .map(|item| {
                    let scale = number(item) * 10.0;
                    let choice = |c: usize| Choice {
                        size: (scale * (2 + c) as f64) as u64,
                        loss: number(100 + item) * 0.25f64.powi(c as i32),
                    };
                    (0..4).map(choice).collect()
                })
                .collect();
            // All 4^5 assignments.
            let all: Vec<(u64, f64)> = (0..1usize << 10)
                .map(|code| {
                    let chosen = items.iter().enumerate().map(|(i, item)| item[code >> (2 * i) & 3]);
                    chosen.fold((0, 0.0), |(s, l), c| (s + c.size, l + c.loss))
                })
                .collect();
            let found = frontier(&items);
            for a in &found {
                let fits = all.iter().filter(|(size, _)| *size <= a.size);
                let best = fits.fold(f64::INFINITY, |best, (_, loss)| best.min(*loss));
                assert!(a.loss <= best + 1e-12, "seed {seed}: {a:?} against {best}");
            }
            assert_eq!(found.first().unwrap().size, all.iter().map(|(size, _)| *size).min().unwrap());
            assert!(found.windows(2).all(|w| w[0].size < w[1].size && w[0].loss > w[1].loss));
        }
        assert!(frontier(&[vec![]]).is_empty());
    }
}

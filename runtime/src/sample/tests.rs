use super::*;

fn sampler(config: SamplerConfig) -> Sampler {
    Sampler::new(config).unwrap()
}

/// Logits of the given probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

/// How often each token is chosen in `n` draws.
fn frequencies(config: SamplerConfig, logits: &[f32], n: usize) -> Vec<f64> {
    let mut sampler = sampler(config);
    let mut counts = vec![0u32; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(&mut logits.to_vec()).unwrap() as usize] += 1;
    }
    counts.iter().map(|&count| f64::from(count) / n as f64).collect()
}

fn hot() -> SamplerConfig {
    SamplerConfig::default().temperature(1.0).seed(7)
}

#[test]
fn greedy_takes_the_first_of_the_best() {
    let mut greedy = sampler(SamplerConfig::greedy());
    assert_eq!(greedy.sample(&mut [0.5, 2.0, -1.0, 2.0]), Ok(1));
    assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, -5.0]), Ok(1));
}

#[test]
fn greedy_finds_the_best_wherever_it_lies() {
    let mut greedy = sampler(SamplerConfig::greedy());
    for len in [1, 31, 32, 33, 64, 100] {
        for best in 0..len {
            let mut row: Vec<f32> = (0..len).map(|i| -((i * 7 % 13) as f32) - 1.0).collect();
            row[best] = -0.5;
            assert_eq!(greedy.sample(&mut row), Ok(best as u32));
            row[best] = f32::NAN;
            assert!(
                matches!(greedy.sample(&mut row), Err(SampleError::BadLogit { token, .. }) if token == best as u32)
            );
        }
    }
}

#[test]
fn frequencies_follow_the_probabilities() {
    let probabilities = [0.5, 0.3, 0.15, 0.05];
    for (measured, p) in frequencies(hot(), &logits(&probabilities), 40_000).iter().zip(probabilities) {
        // Four standard deviations of a binomial with n = 40,000 are at most 0.01.
        assert!((measured - f64::from(p)).abs() < 0.01, "{measured} for {p}");
    }
    let cold = frequencies(hot().temperature(0.5), &logits(&probabilities), 40_000);
    let squares: f32 = probabilities.iter().map(|p| p * p).sum();
    for (measured, p) in cold.iter().zip(probabilities) {
        assert!((measured - f64::from(p * p / squares)).abs() < 0.01, "{measured} for {p}");
    }
}

#[test]
fn filters_keep_exactly_what_they_say() {
    let l = logits(&[0.05, 0.5, 0.15, 0.3]);
    let kept = |config| -> Vec<usize> {
        let counts = frequencies(config, &l, 4000);
        (0..counts.len()).filter(|&i| counts[i] > 0.0).collect()
    };
    assert_eq!(kept(hot()), [0, 1, 2, 3]);
    assert_eq!(kept(hot().top_k(2)), [1, 3]);
    assert_eq!(kept(hot().top_k(9)), [0, 1, 2, 3]);
    assert_eq!(kept(hot().top_p(0.79)), [1, 3]);
    assert_eq!(kept(hot().top_p(0.81)), [1, 2, 3]);
    assert_eq!(kept(hot().top_p(1e-9)), [1], "the best token always stays");
    assert_eq!(kept(hot().min_p(0.4)), [1, 3]);
    assert_eq!(kept(hot().min_p(1.0)), [1]);
    assert_eq!(kept(hot().top_k(3).top_p(0.6)), [1, 3], "top-p counts shares of what top-k left");
}

#[test]
fn ties_at_the_boundary_go_to_lower_ids() {
    let kept: Vec<f64> = frequencies(hot().top_k(2), &[1.0; 5], 500);
    assert!(kept[0] > 0.0 && kept[1] > 0.0 && kept[2..].iter().all(|&f| f == 0.0));
}

/// Top-p by its definition: sort everything.
fn top_p_by_definition(logits: &[f32], p: f32) -> Vec<u32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&i: &u32| f64::from((logits[i as usize] - top).exp());
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
    let wanted = f64::from(p) * (0..logits.len() as u32).map(|i| weight(&i)).sum::<f64>();
    let mut sum = 0.0;
    let enough = order.iter().position(|i| {
        sum += weight(i);
        sum >= wanted
    });
    order.truncate(enough.map_or(order.len(), |i| i + 1));
    order.sort_unstable();
    order
}

#[test]
fn partial_selection_agrees_with_full_sort() {
    let mut random = Pcg32::new(3);
    for round in 0..40 {
        // Quantised logits make ties; a narrow range makes large nuclei.
        let spread = [0.5, 3.0, 12.0][round % 3];
        let logits: Vec<f32> =
            (0..5000).map(|_| (random.next_f64() * 64.0).floor() as f32 / 64.0 * spread).collect();
        for p in [0.05, 0.5, 0.9, 0.99] {
            let mut sampler = sampler(hot().top_p(p));
            sampler.sample(&mut logits.clone()).unwrap();
            let kept: Vec<u32> = sampler.candidates.iter().map(|c| c.token).collect();
            let expected = top_p_by_definition(&logits, p);
            // Sums in another order may move the boundary by one token.
            assert!(kept.len().abs_diff(expected.len()) <= 1, "{} and {}", kept.len(), expected.len());
            let shorter = kept.len().min(expected.len());
            assert!(kept.iter().filter(|t| expected.contains(t)).count() >= shorter);
        }
    }
}

#[test]
fn penalties() {
    let choose = |config: SamplerConfig, recent: &[u32], logits: &[f32]| {
        let mut sampler = sampler(config);
        recent.iter().for_each(|&t| sampler.accept(t));
        sampler.sample(&mut logits.to_vec()).unwrap()
    };
    let repeat = SamplerConfig::greedy().repeat_penalty(2.0);
    assert_eq!(choose(repeat.clone(), &[0], &[3.0, 2.0]), 1, "3 / 2 is less than 2");
    assert_eq!(choose(repeat.clone(), &[0], &[-1.0, -1.5]), 1, "negative logits grow away from 0");
    assert_eq!(choose(repeat.clone(), &[], &[3.0, 2.0]), 0);
    let presence = SamplerConfig::greedy().presence_penalty(0.4);
    assert_eq!(choose(presence.clone(), &[0, 0, 0], &[1.5, 1.0]), 0, "presence counts once");
    let frequency = SamplerConfig::greedy().frequency_penalty(0.4);
    assert_eq!(choose(frequency, &[0, 0, 0], &[1.5, 1.0]), 1, "frequency counts each time");
    assert_eq!(choose(repeat.penalty_window(1), &[0, 1], &[3.0, 2.0]), 0, "token 0 left the window");
    assert_eq!(choose(presence, &[99], &[1.5, 1.0]), 0, "an id beyond the logits is ignored");
}

#[test]
fn a_seed_names_a_sequence() {
    let l: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
    let run = |seed| -> Vec<u32> {
        let mut sampler = sampler(hot().seed(seed).top_p(0.9));
        (0..20).map(|_| sampler.sample(&mut l.clone()).unwrap()).collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn broken_logits_are_errors() {
    for config in [SamplerConfig::greedy(), hot().top_k(1).top_p(0.5)] {
        let mut sampler = sampler(config);
        assert_eq!(sampler.sample(&mut []), Err(SampleError::Empty));
        let nan = sampler.sample(&mut [0.0, f32::NAN]);
        assert!(matches!(nan, Err(SampleError::BadLogit { token: 1, value }) if value.is_nan()));
        let infinite = sampler.sample(&mut [f32::INFINITY, 0.0]);
        assert!(matches!(infinite, Err(SampleError::BadLogit { token: 0, .. })));
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 3]), Err(SampleError::NothingLeft));
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, 1.0]), Ok(1));
    }
}

#[test]
fn a_penalty_that_overflows_is_an_error() {
    let mut sampler = sampler(hot().repeat_penalty(1e-30));
    sampler.accept(0);
    assert!(matches!(sampler.sample(&mut [1e20, 0.0]), Err(SampleError::BadLogit { token: 0, .. })));
}

#[test]
fn settings_out_of_range_are_errors() {
    let bad = [
        hot().temperature(-1.0),
        hot().temperature(f32::NAN),
        hot().top_p(0.0),
        hot().top_p(1.5),
        hot().min_p(-0.1),
        hot().min_p(f32::NAN),
        hot().repeat_penalty(0.0),
        hot().presence_penalty(f32::INFINITY),
        hot().frequency_penalty(f32::NAN),
    ];
    for config in bad {
        assert!(matches!(Sampler::new(config.clone()), Err(SampleError::Config { .. })), "{config:?}");
    }
}

#[test]
fn extreme_temperatures_are_finite() {
    assert_eq!(frequencies(hot().temperature(1e-30), &[1.0, 1.0001, 0.0], 100), [0.0, 1.0, 0.0]);
    let flat = frequencies(hot().temperature(1e30), &[50.0, 0.0], 4000);
    assert!((flat[0] - 0.5).abs() < 0.05);
}

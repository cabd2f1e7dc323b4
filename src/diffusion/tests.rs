//! What holds for every scheduler. The steps themselves are compared with diffusers in `tests/diffusion`.

use serde_json::{Map, Value, json};

use super::*;

fn config(fields: Value) -> Map<String, Value> {
    fields.as_object().unwrap().clone()
}

fn scheduler(class: &str) -> Scheduler {
    let fields = json!({"_class_name": class, "clip_sample": false});
    Scheduler::from_config(&config(fields), None).unwrap()
}

const CLEAN: [f32; 6] = [0.5, -0.9, 0.1, 0.0, 0.75, -0.3];

/// Runs a plan with a model that knows the clean sample.
fn sampled(plan: &Plan, prediction: PredictionType) -> Vec<f32> {
    let dimensions = CLEAN.len();
    let mut noise = normals(1, 0);
    let (mut x, mut z) = (vec![0.0; dimensions], vec![0.0; dimensions]);
    noise.fill(&mut x);
    plan.scale_noise(&mut x);
    let mut run = plan.start(dimensions);
    for i in 0..plan.steps() {
        let (alpha, sigma) = plan.levels[i];
        let output = |(x, clean): (&f32, &f32)| match prediction {
            PredictionType::Sample => *clean,
            _ => (x - alpha * clean) / sigma,
        };
        let output: Vec<f32> = x.iter().zip(&CLEAN).map(output).collect();
        noise.fill(&mut z);
        run.step(i, &output, &mut x, &z).unwrap();
    }
    x
}

#[test]
fn a_model_that_knows_the_clean_sample_is_followed_to_it() {
    for class in CLASSES {
        let plan = scheduler(class).plan(20).unwrap();
        let end = sampled(&plan, PredictionType::Epsilon);
        for (x, clean) in end.iter().zip(CLEAN) {
            // LCM returns the sample of its first timestep, which holds a little of the noisy one.
            assert!((x - clean).abs() < 0.02, "{class}: {end:?}");
        }
    }
}

#[test]
fn a_sample_has_the_same_bits_in_any_batch() {
    for class in CLASSES {
        let plan = scheduler(class).plan(9).unwrap();
        let dimensions = 13;
        let draw = |samples: std::ops::Range<u64>| {
            let mut streams: Vec<Normals> = samples.map(|i| normals(5, i)).collect();
            let mut next = || {
                let mut all = vec![0.0; streams.len() * dimensions];
                let rows = all.chunks_exact_mut(dimensions);
                rows.zip(&mut streams).for_each(|(row, s)| s.fill(row));
                all
            };
            let mut x = next();
            let mut run = plan.start(dimensions);
            for i in 0..plan.steps() {
                let (output, noise) = (next(), next());
                run.step(i, &output, &mut x, &noise).unwrap();
            }
            x
        };
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let whole = bits(draw(0..7));
        let alone: Vec<u32> = (0..7).flat_map(|i| bits(draw(i..i + 1))).collect();
        assert_eq!(whole, alone, "{class}");
    }
}

#[test]
fn velocity_and_noise_give_the_clean_sample_back() {
    let noise = [0.3, -1.2, 2.0, 0.1, -0.4, 0.9];
    let (mut noisy, mut v) = ([0.0; 6], [0.0; 6]);
    let alpha_cumprod = 0.3_f32;
    add_noise(alpha_cumprod, &CLEAN, &noise, &mut noisy);
    velocity(alpha_cumprod, &CLEAN, &noise, &mut v);
    let (alpha, sigma) = (alpha_cumprod.sqrt(), (1.0 - alpha_cumprod).sqrt());
    for i in 0..6 {
        let clean = PredictionType::V.clean(v[i], noisy[i], alpha, sigma);
        assert!((clean - CLEAN[i]).abs() < 1e-6);
        let back = PredictionType::V.noise(v[i], noisy[i], alpha, sigma);
        assert!((back - noise[i]).abs() < 1e-6);
    }
}

#[test]
fn guidance_moves_away_from_the_unconditional_prediction() {
    let mut guided = [1.0, -1.0, 0.5, 0.0];
    let conditional = [2.0, -1.0, 0.0, 1.0];
    guide(&mut guided, &conditional, 3.0);
    assert_eq!(guided, [4.0, -1.0, -1.0, 3.0]);
    let deviation = |x: &[f32]| {
        let mean = x.iter().sum::<f32>() / 4.0;
        (x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 3.0).sqrt()
    };
    rescale_guidance(&mut guided, &conditional, 1.0);
    assert!((deviation(&guided) - deviation(&conditional)).abs() < 1e-6);
    let before = guided;
    rescale_guidance(&mut guided, &conditional, 0.0);
    assert_eq!(guided, before);
}

#[test]
fn a_multistep_solver_can_enter_midway() {
    let scheduler = scheduler("DPMSolverMultistepScheduler");
    let plan = scheduler.plan(20).unwrap();
    let mut x = vec![0.0; CLEAN.len()];
    let mut z = x.clone();
    normals(2, 0).fill(&mut z);
    plan.add_noise(12, &CLEAN, &z, &mut x);
    let mut run = plan.start(CLEAN.len());
    for i in 12..plan.steps() {
        let (alpha, sigma) = plan.levels[i];
        let output = |(x, clean): (&f32, &f32)| (x - alpha * clean) / sigma;
        let output: Vec<f32> = x.iter().zip(&CLEAN).map(output).collect();
        run.step(i, &output, &mut x, &[]).unwrap();
    }
    for (x, clean) in x.iter().zip(CLEAN) {
        assert!((x - clean).abs() < 1e-3, "{x} {clean}");
    }
}

#[test]
fn infinities_of_python_are_read() {
    let json = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity}"#;
    assert_eq!(
        Scheduler::from_json(json).unwrap().plan(3).unwrap().steps(),
        3
    );
    let json = r#"{"_class_name": "DDPMScheduler", "beta_end": NaN}"#;
    let refused = Scheduler::from_json(json).unwrap_err().to_string();
    assert_eq!(
        refused,
        "DDPMScheduler: `beta_end` is NaN: it must be a number"
    );
}

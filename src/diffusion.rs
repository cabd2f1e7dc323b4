//! The diffusion process: adding noise to a sample, and removing it step by step with the predictions of a model.
//!
//! A [`Scheduler`] is read from a `scheduler_config.json` with the names and defaults of diffusers 0.42.1. It makes a [`Plan`] for
//! a number of steps, and a plan starts a [`Run`], which moves a batch of samples:
//!
//! ```
//! # use residuald::diffusion::{Scheduler, normals};
//! # fn model(x: &[f32], _t: f32) -> Vec<f32> { x.to_vec() }
//! let scheduler = Scheduler::from_json(r#"{"_class_name": "DDPMScheduler"}"#)?;
//! let plan = scheduler.plan(10)?;
//! let dimensions = 4;
//! let mut noise = normals(7, 0); // seed 7, sample 0
//! let mut sample = vec![0.0; dimensions];
//! noise.fill(&mut sample);
//! plan.scale_noise(&mut sample);
//! let mut run = plan.start(dimensions);
//! let (mut input, mut step_noise) = (vec![0.0; dimensions], vec![0.0; dimensions]);
//! for i in 0..plan.steps() {
//!     plan.scale_input(i, &sample, &mut input);
//!     let output = model(&input, plan.timesteps()[i]);
//!     if plan.is_stochastic() {
//!         noise.fill(&mut step_noise);
//!     }
//!     run.step(i, &output, &mut sample, &step_noise)?;
//! }
//! # Ok::<(), residuald::diffusion::Error>(())
//! ```
//!
//! The arithmetic is float32, in the order of diffusers, and touches each sample alone. So a sample has the same bits in any batch.

mod bound;
pub mod components;
mod config;
mod ddim;
mod ddpm;
mod descent;
mod dpm_solver_multistep;
mod euler;
mod euler_ancestral;
pub mod folder;
mod forward;
mod guidance;
mod image_bundle;
mod latent_scale;
mod lcm;
mod multistep;
mod noise;
mod noise_file;
mod noise_schedule;
mod numerics;
mod pndm;
mod prediction;
mod repaint;
mod scheduler;
mod sigmas;
mod spacing;
mod unipc_multistep;

pub use descent::Descent;
pub use forward::{add_noise, velocity};
pub use guidance::{guidance_embedding, guide, rescale_guidance};
pub use latent_scale::LatentScale;
pub use noise::{Noise, NoiseOfSamples, Normals, Sample, normals};
pub use noise_file::NoiseFile;
pub use noise_schedule::NoiseSchedule;
pub use prediction::PredictionType;
pub use repaint::Repaint;
pub use scheduler::{CLASSES, Plan, Run, Scheduler};

/// Why there is no scheduler, plan or step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration is not one of a scheduler that is here.
    #[error("{0}")]
    Config(String),
    /// The scheduler cannot take that many steps.
    #[error("{0}")]
    Steps(String),
    /// Slices do not fit the batch, or steps are out of order.
    #[error("{0}")]
    Shape(String),
    /// A file of noise cannot be used.
    #[error("{0}")]
    Noise(String),
}

#[cfg(test)]
mod tests;

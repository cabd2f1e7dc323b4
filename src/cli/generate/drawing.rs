//! Draws images on all cores, and writes each as soon as it is whole.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use indicatif::ProgressBar;

use super::film::{Film, MOST_FRAMES};
use super::image_files::{ImageFiles, Trace};
use super::sheet::Sheet;
use crate::cli::shared::png_file::small;
use crate::cli::shared::sampling::{Guidance, Sampler, Start, images_must_be_finite};
use crate::diffusion::{Noise, Plan};
use crate::failure::Failure;
use crate::onnx::{Denoiser, VaeDecoder};
use crate::shutdown::Shutdown;

/// Maximum size of the latent images that wait for the decoder, in bytes.
const MOST_WAITING: usize = 2 << 20;

/// What the threads share.
pub struct Drawing {
    pub plan: Plan,
    pub guidance: Guidance,
    pub start: Option<Start>,
    /// Channels, height and width of what is sampled: an image, or a latent image.
    pub shape: [usize; 3],
    pub noise: Noise,
    pub files: ImageFiles,
    pub trace: Option<Trace>,
    pub sheet: Option<Sheet>,
    pub count: u64,
    /// The number of images that go through the steps together.
    pub batch: u64,
    pub stop: Shutdown,
    pub bar: ProgressBar,
    pub progress: Progress,
}

#[derive(Default)]
pub struct Progress {
    /// The first image that no thread has taken.
    next: AtomicU64,
    written: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

/// Images that went through all steps: [N, C, H, W], perhaps latent.
struct Drawn {
    images: Range<u64>,
    values: Vec<f32>,
    film: Option<Film>,
}

impl Drawing {
    /// Draws all images, on a thread for each of `sessions`.
    ///
    /// # Errors
    /// A thread failed, or a stop was requested.
    pub fn run(&self, sessions: Vec<(Denoiser, Option<VaeDecoder>)>) -> Result<(), Failure> {
        thread::scope(|scope| {
            for (denoiser, decoder) in sessions {
                scope.spawn(|| {
                    if let Err(failure) = self.work(denoiser, decoder) {
                        if let Ok(mut first) = self.progress.failure.lock() {
                            first.get_or_insert(failure);
                        }
                        self.stop.request();
                    }
                });
            }
        });
        let failure = self.progress.failure.lock();
        let failure = failure.map(|mut failure| failure.take());
        self.end(failure.unwrap_or_default())
    }

    /// As [`Drawing::run`] for latent images, on one thread and with one session at a time: some images go through all steps, then
    /// these are decoded, and so on. `denoiser` and `decoder` open a session.
    ///
    /// # Errors
    /// A session cannot be opened or fails, or a stop was requested.
    pub fn run_in_turn(
        &self,
        first: Denoiser,
        denoiser: impl Fn() -> Result<Denoiser, Failure>,
        decoder: impl Fn() -> Result<VaeDecoder, Failure>,
    ) -> Result<(), Failure> {
        let mut next = Some(first);
        let mut turns = || {
            while let Some(images) = self.take() {
                let denoiser = next.take().map_or_else(&denoiser, Ok)?;
                let drawn = self.draw_some(denoiser, images)?;
                if self.stop.is_requested() {
                    break;
                }
                let mut decoder = decoder()?;
                for drawn in drawn.into_iter().take_while(|_| !self.stop.is_requested()) {
                    self.finish(Some(&mut decoder), drawn)?;
                }
            }
            Ok(())
        };
        let failed = turns().err();
        self.end(failed)
    }

    /// Takes `images`, and as many after them as may wait, through all steps.
    fn draw_some(&self, denoiser: Denoiser, images: Range<u64>) -> Result<Vec<Drawn>, Failure> {
        let states = 1 + self.trace.as_ref().map_or(0, |_| MOST_FRAMES);
        let image = size_of::<f32>() * self.shape.iter().product::<usize>();
        let most = MOST_WAITING / (states * image * self.batch as usize);
        let mut sampler = self.sampler(denoiser);
        let mut waiting = Vec::new();
        let mut next = Some(images);
        while let Some(images) = next {
            waiting.extend(self.draw(&mut sampler, images)?);
            next = (waiting.len() < most).then(|| self.take()).flatten();
        }
        Ok(waiting)
    }

    /// Draws groups of images until there are no more.
    fn work(&self, denoiser: Denoiser, mut decoder: Option<VaeDecoder>) -> Result<(), Failure> {
        let mut sampler = self.sampler(denoiser);
        while let Some(images) = self.take() {
            if let Some(drawn) = self.draw(&mut sampler, images)? {
                self.finish(decoder.as_mut(), drawn)?;
            }
        }
        Ok(())
    }

    fn sampler(&self, denoiser: Denoiser) -> Sampler<'_> {
        let dimensions = self.shape.iter().product();
        let start = self.start.as_ref();
        Sampler::new(&self.plan, &self.guidance, start, denoiser, dimensions)
    }

    /// The next images to draw. `None` if there are no more, or a stop was requested.
    fn take(&self) -> Option<Range<u64>> {
        if self.stop.is_requested() {
            return None;
        }
        let first = self.progress.next.fetch_add(self.batch, Ordering::Relaxed);
        (first < self.count).then(|| first..self.count.min(first + self.batch))
    }

    /// Takes images through all steps. Returns `None` if a stop was requested meanwhile.
    fn draw(
        &self,
        sampler: &mut Sampler<'_>,
        images: Range<u64>,
    ) -> Result<Option<Drawn>, Failure> {
        let count = (images.end - images.start) as usize;
        let film = |trace: &Trace| Film::new(count, self.steps(), self.shape, trace.is_latent());
        let mut film = self.trace.as_ref().map(film);
        let mut states = |state: usize, all: &[f32]| {
            if state > 0 {
                self.bar.inc(count as u64);
            }
            if let (Some(film), Some(trace)) = (&mut film, &self.trace) {
                film.see(state, all);
                trace.write(images.clone(), state, all)?;
            }
            Ok(())
        };
        let values = sampler.draw(images.clone(), &self.noise, &self.stop, &mut states)?;
        Ok(values.map(|values| Drawn {
            images,
            values,
            film,
        }))
    }

    /// The number of steps that an image takes.
    pub fn steps(&self) -> usize {
        self.plan.steps() - self.start.as_ref().map_or(0, |start| start.step)
    }

    /// Decodes and writes images.
    fn finish(&self, mut decoder: Option<&mut VaeDecoder>, drawn: Drawn) -> Result<(), Failure> {
        let Drawn {
            images,
            mut values,
            film,
        } = drawn;
        if let Some(decoder) = &mut decoder {
            values = decoder.decode(&values)?;
            images_must_be_finite(&images, &values)?;
        }
        let shape = self.files.shape();
        if let (Some(film), Some(trace)) = (film, &self.trace) {
            let frames = film.finish(&values, shape, decoder)?;
            for (image, frames) in images.clone().zip(&frames) {
                trace.animate(image, frames)?;
            }
        }
        for (image, values) in images.zip(values.chunks_exact(shape.iter().product())) {
            self.files.write(image, values)?;
            if let Some(sheet) = self.sheet.as_ref().filter(|sheet| sheet.shows(image)) {
                sheet.put(image, small(values, shape, super::sheet::SIDE));
            }
            let written = 1 + self.progress.written.fetch_add(1, Ordering::Relaxed);
            if self.count > 1 {
                let message = format!("{written}/{} images, ", self.count);
                self.bar.set_message(message);
            }
        }
        Ok(())
    }

    /// What became of it.
    fn end(&self, failure: Option<Failure>) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let written = self.progress.written.load(Ordering::Relaxed);
        match failure {
            Some(failure) => Err(Failure {
                message: format!("{} (images written: {written})", failure.message),
                ..failure
            }),
            None if written < self.count => Err(Failure::interrupted(format!(
                "interrupted: images written: {written} of {}, each whole",
                self.count
            ))),
            None => Ok(()),
        }
    }
}

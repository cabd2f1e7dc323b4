//! Makes an image of each image of a folder, on all cores. Bad images are counted and named, and do not stop the rest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::json;

use super::png_file::write_png;
use super::refusals::Refusals;
use super::{print, progress};
use crate::bounded;
use crate::dataset;
use crate::decode::{Reason, RowError};
use crate::failure::Failure;
use crate::image::{
    About, BitDepth, ImageError, Lost, MOST_WHOLE, Opened, PngPixels, color, noise_number, values,
};
use crate::shutdown::Shutdown;

/// What is read and where it goes.
pub struct ImageJob {
    pub images: Vec<Task>,
    /// The model's channels: 1 for gray, 3 for RGB.
    pub channels: usize,
    /// Those of what is made.
    pub out_channels: usize,
    pub depth: BitDepth,
    /// Whether existing images are replaced rather than skipped.
    pub overwrites: bool,
    /// Whether the result is one JSON object rather than text.
    pub json: bool,
    /// What the metadata of every image says.
    pub about: About,
}

/// An image that has not been opened yet.
pub struct Task {
    path: PathBuf,
    /// The path relative to the folder.
    name: String,
    out: PathBuf,
}

/// An image as the model gets it.
pub struct Source {
    /// The path relative to the folder, with `/` as separator.
    pub name: String,
    /// Height and width.
    pub size: [usize; 2],
    /// 8 bits, in reading order.
    pub bytes: Vec<u8>,
    /// From -1 to 1, [C, H, W].
    pub values: Vec<f32>,
    /// The number of its noise, by [`noise_number`].
    pub number: u64,
}

/// The outcome for an image.
pub struct Made {
    /// 8 bits, in reading order.
    pub bytes: Vec<u8>,
    /// What its metadata says beside what all say.
    pub about: About,
    /// Whether there was nothing to do, so that it is the image that came.
    pub unchanged: bool,
}

/// `None` after a stop was requested. The inner error is why there is no image.
pub type Outcome = Option<Result<Made, RowError>>;

/// The steps of an image that is being made. The progress bar shows them if it is the only one.
pub struct Steps<'r> {
    stop: &'r Shutdown,
    bar: Option<&'r ProgressBar>,
}

impl Steps<'_> {
    /// Says that this many are to come.
    pub fn expect(&self, steps: usize) {
        if let Some(bar) = self.bar {
            bar.inc_length(steps as u64);
        }
    }

    /// Counts one that was taken.
    pub fn count(&self) {
        if let Some(bar) = self.bar {
            bar.inc(1);
        }
    }

    /// Whether no further one is to be taken.
    pub fn must_stop(&self) -> bool {
        self.stop.is_requested()
    }
}

/// How many images were made, and what was lost in them.
#[derive(Default)]
struct Tally {
    written: usize,
    unchanged: usize,
    to_gray: usize,
    to_8_bits: usize,
    without_alpha: usize,
    refusals: Refusals,
}

/// Returns the images of a folder and its subfolders, as `score` reads it, or the one image, each with its place in `out`. `out`
/// ends with .png for the file of one image, and is a folder otherwise.
///
/// # Errors
/// There are no images, two would get the same name, or `out` is inside of the folder.
pub fn tasks(input: &Path, out: &Path) -> Result<Vec<Task>, Failure> {
    let is_file = out
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("png"));
    if !input.is_dir() {
        if !input.exists() {
            return Err(Failure::data(format!(
                "{}: there is no such file or folder",
                input.display()
            )));
        }
        let file = input.file_name().unwrap_or_default();
        return Ok(vec![Task {
            path: input.to_owned(),
            name: file.to_string_lossy().into_owned(),
            out: match is_file {
                true => out.to_owned(),
                false => out.join(Path::new(file).with_extension("png")),
            },
        }]);
    }
    if is_file {
        return Err(Failure::usage(format!(
            "--out {} is a file: a folder of images needs a folder",
            out.display()
        )));
    }
    std::fs::create_dir_all(out).map_err(|e| super::whole_files::failed(out, &e))?;
    if let (Ok(inside), Ok(folder)) = (out.canonicalize(), input.canonicalize())
        && inside.starts_with(folder)
    {
        return Err(Failure::usage(format!(
            "--out {} is inside of {}, so the next run would read what this one writes: name a folder outside",
            out.display(),
            input.display()
        )));
    }
    let images = dataset::folder::images(input, None, None)?;
    let mut taken: HashMap<PathBuf, String> = HashMap::new();
    let mut tasks = Vec::with_capacity(images.len());
    for image in images {
        let place = Path::new(&image.name).with_extension("png");
        if let Some(other) = taken.insert(place.clone(), image.name.clone()) {
            return Err(Failure::usage(format!(
                "{other} and {} would both become {}: put them into different folders",
                image.name,
                place.display()
            )));
        }
        tasks.push(Task {
            path: image.path,
            out: out.join(place),
            name: image.name,
        });
    }
    Ok(tasks)
}

impl ImageJob {
    /// Calls `make` for each image that is not there yet, with one of the workers. Prints what was done.
    ///
    /// # Errors
    /// `make` fails, an image cannot be written, the work was interrupted, or no image could be used.
    pub fn run<W: Send>(
        self,
        workers: Vec<W>,
        make: impl Fn(&mut W, &Source, &Steps<'_>) -> Result<Outcome, Failure> + Sync,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let all = self.images.len();
        let (there, todo): (Vec<Task>, Vec<Task>) = self
            .images
            .into_iter()
            .partition(|task| !self.overwrites && task.out.exists());
        let running = Running {
            channels: self.channels,
            out_channels: self.out_channels,
            depth: self.depth,
            overwrites: self.overwrites,
            about: self.about,
            next: AtomicUsize::new(0),
            tally: Mutex::default(),
            failure: Mutex::default(),
            stop: Shutdown::default(),
            bar: match todo.len() {
                1 => progress::of_steps(0, self.json),
                images => progress::of_images(images, self.json),
            },
            todo,
        };
        progress::stop_on_ctrl_c(&running.stop)?;
        thread::scope(|scope| {
            for mut worker in workers {
                let (running, make) = (&running, &make);
                scope.spawn(move || running.work(&mut worker, make));
            }
        });
        running.bar.finish_and_clear();
        if let Some(warning) = running.depth.warning() {
            print::error_line(format_args!("{warning}"));
        }
        let tally = running.tally.into_inner().unwrap_or_default();
        let (written, skipped) = (tally.written, there.len());
        let refused = tally.refusals.count() as usize;
        if let Some(failure) = running.failure.into_inner().unwrap_or_default() {
            let message = format!("{} (images written: {written})", failure.message);
            return Err(Failure { message, ..failure });
        }
        if written + skipped + refused < all {
            return Err(Failure::interrupted(format!(
                "interrupted: images written: {written} of {all}, each whole; the same command goes on with the rest"
            )));
        }
        report(&tally, skipped, started, self.json);
        match written + skipped {
            0 => Err(Failure::data(format!(
                "none of the {refused} images could be used: {}",
                tally.refusals
            ))),
            _ => Ok(()),
        }
    }
}

fn report(tally: &Tally, skipped: usize, started: Instant, json: bool) {
    let seconds = started.elapsed().as_secs_f64();
    let Tally {
        written,
        unchanged,
        to_gray,
        to_8_bits,
        without_alpha,
        refusals,
    } = tally;
    let notes = [
        (
            *to_gray,
            "in colour became gray, because the model is for gray images",
        ),
        (*to_8_bits, "of 16 bits per channel were written with 8"),
        (*without_alpha, "lost their transparency"),
    ];
    if json {
        println!(
            "{}",
            json!({
                "images": written, "unchanged": unchanged, "skipped": skipped, "refused": refusals.count(), "reasons": refusals.all(),
                "to_gray": to_gray, "to_8_bits": to_8_bits, "without_alpha": without_alpha, "seconds": seconds,
            })
        );
        return;
    }
    for (count, what) in notes.iter().filter(|(count, _)| *count > 0) {
        eprintln!("{count} images {what}");
    }
    println!("images: {written} written in {seconds:.1} s");
    if *unchanged > 0 {
        println!("unchanged: {unchanged} of them, because there was nothing to do");
    }
    if skipped > 0 {
        println!("skipped: {skipped} that were there already; --force replaces them");
    }
    if refusals.count() > 0 {
        println!("refused: {refusals}");
    }
}

/// What the threads share.
struct Running {
    todo: Vec<Task>,
    channels: usize,
    out_channels: usize,
    depth: BitDepth,
    overwrites: bool,
    about: About,
    /// The first image that no thread has taken.
    next: AtomicUsize,
    tally: Mutex<Tally>,
    failure: Mutex<Option<Failure>>,
    stop: Shutdown,
    bar: ProgressBar,
}

impl Running {
    fn work<W>(
        &self,
        worker: &mut W,
        make: &impl Fn(&mut W, &Source, &Steps<'_>) -> Result<Outcome, Failure>,
    ) {
        while !self.stop.is_requested() {
            let Some(task) = self.todo.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            if let Err(failure) = self.one(task, worker, make) {
                if let Ok(mut first) = self.failure.lock() {
                    first.get_or_insert(failure);
                }
                self.stop.request();
            }
        }
    }

    fn one<W>(
        &self,
        task: &Task,
        worker: &mut W,
        make: &impl Fn(&mut W, &Source, &Steps<'_>) -> Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let mut lost = Tally::default();
        let outcome = match self.read(task, &mut lost) {
            Ok(source) => {
                let steps = Steps {
                    stop: &self.stop,
                    bar: self.is_alone().then_some(&self.bar),
                };
                make(worker, &source, &steps)?.map(|made| made.map(|made| (made, source.size)))
            }
            Err(error) => Some(Err(error)),
        };
        let Some(outcome) = outcome else {
            return Ok(());
        };
        match outcome {
            Ok((made, size)) => {
                self.write(task, &made, size)?;
                lost.unchanged = usize::from(made.unchanged);
                lost.written = 1;
            }
            Err(error) => {
                lost = Tally::default();
                lost.refusals = Refusals::by_flags();
                lost.refusals.add(error.reason.as_str(), &error.detail);
                self.bar.suspend(|| {
                    print::error_line(format_args!("{}: refused: {}", task.name, error.detail));
                });
            }
        }
        if let Ok(mut tally) = self.tally.lock() {
            tally.add(lost);
        }
        if !self.is_alone() {
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Whether there is one image only.
    fn is_alone(&self) -> bool {
        self.todo.len() == 1
    }

    fn read(&self, task: &Task, lost: &mut Tally) -> Result<Source, RowError> {
        let encoded = read(&task.path)?;
        let opened = Opened::new(&encoded, self.channels, MOST_WHOLE)?;
        let found = Lost::of(&opened, self.channels);
        lost.to_gray = usize::from(found.colour);
        lost.to_8_bits = usize::from(found.depth);
        lost.without_alpha = usize::from(found.transparency);
        let flat = opened.decode(&self.depth)?;
        Ok(Source {
            name: task.name.clone(),
            size: [flat.height, flat.width],
            number: noise_number(&encoded),
            values: values(&flat.pixels, self.channels),
            bytes: flat.pixels,
        })
    }

    fn write(&self, task: &Task, made: &Made, [height, width]: [usize; 2]) -> Result<(), Failure> {
        if let Some(folder) = task.out.parent() {
            std::fs::create_dir_all(folder).map_err(|e| super::whole_files::failed(folder, &e))?;
        }
        let color = color(self.out_channels)
            .ok_or_else(|| Failure::internal("a model of other channels than 1 or 3"))?;
        let pixels = PngPixels {
            width,
            height,
            color,
            bytes: &made.bytes,
        };
        let about = [self.about.as_slice(), &made.about].concat();
        write_png(&task.out, self.overwrites, &pixels, &about)
    }
}

impl Tally {
    fn add(&mut self, one: Tally) {
        self.written += one.written;
        self.unchanged += one.unchanged;
        self.to_gray += one.to_gray;
        self.to_8_bits += one.to_8_bits;
        self.without_alpha += one.without_alpha;
        self.refusals.merge(one.refusals);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RowError> {
    let failed = |problem: String| RowError {
        reason: Reason::Malformed,
        detail: problem.into(),
    };
    let io = |e: std::io::Error| failed(format!("cannot be read: {e}"));
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(failed("is not a regular file".into()));
    }
    if metadata.len() > bounded::IMAGE {
        return Err(ImageError::TooLarge {
            what: "bytes",
            is: metadata.len(),
            limit: bounded::IMAGE,
        }
        .into());
    }
    bounded::read(path, bounded::IMAGE).map_err(io)
}

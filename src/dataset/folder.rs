//! Finds the images of a folder, either in the layout of Anomalib and MVTec AD or without labels.
//!
//! ```text
//! FOLDER/test/good/000.png                  normal
//! FOLDER/test/crack/000.png                 anomalous, of the class `crack`
//! FOLDER/ground_truth/crack/000_mask.png    its mask, if FOLDER/ground_truth is given as the folder of masks
//! ```
//!
//! Without a folder `test`, FOLDER's own subfolders are the classes. Without a folder of normal images, no image is labelled.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::{Error, ErrorKind};

const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];
/// Anomalib's folder of the images to score.
const TEST: &str = "test";
/// Anomalib's folder of normal images.
const GOOD: &str = "good";
/// Anomalib's folder of masks, which is not a class.
const GROUND_TRUTH: &str = "ground_truth";

/// An image file that has not been opened yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    pub path: PathBuf,
    /// The path relative to the folder, with `/` as separator.
    pub name: String,
    /// The first folder of that path, if the images are labelled.
    pub class: Option<String>,
    /// Whether the image is anomalous. `None` if the images are not labelled.
    pub label: Option<bool>,
    pub truth: Truth,
}

/// The true anomalous area of an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// The image has no mask and is not labelled normal.
    Unknown,
    /// The image is normal, so no pixel is anomalous.
    Normal,
    /// The pixels that are not black in this mask.
    Mask(PathBuf),
}

/// Returns the images of `folder` and its subfolders, sorted by path. PNG, JPEG, WebP, BMP and TIFF are recognised by extension,
/// in upper or lower case. Links are followed, and hidden files are skipped.
///
/// `normal` is the name of the folder of normal images. The default is `good`, if it exists.
///
/// In `masks`, the mask of `crack/000.jpg` is `crack/000_mask.png` or `crack/000.png`, or either with another extension. Masks
/// and images may be in the same folder. Then a PNG is a mask if an image of another format has the same name, or if any image
/// has its name without `_mask`.
///
/// # Errors
/// A folder cannot be read, contains no images, or has no subfolder `normal`. It is also an error if a mask has no image.
pub fn images(
    folder: &Path,
    normal: Option<&str>,
    masks: Option<&Path>,
) -> Result<Vec<Image>, Error> {
    let test = folder.join(TEST);
    let base = if test.is_dir() { &test } else { folder };
    let masks = masks.map(Root::new).transpose()?;
    let base = Root::new(base)?;
    let mut files = base.files(masks.as_ref())?;
    let mut found = match &masks {
        None => Vec::new(),
        Some(masks) if masks.canonical == base.canonical => {
            let (masks, images) = separate_masks(files);
            files = images;
            masks
        }
        Some(masks) => masks.files(None)?,
    };
    if files.is_empty() {
        let reason = format!(
            "no images found: the supported extensions are {}",
            EXTENSIONS.join(", ")
        );
        return Err(fail(folder, ErrorKind::Folder(reason)));
    }
    let labelled = base.path.join(normal.unwrap_or(GOOD)).is_dir();
    if let (Some(normal), false) = (normal, labelled) {
        let classes: HashSet<_> = files.iter().filter_map(|file| class(file)).collect();
        let mut classes: Vec<_> = classes.into_iter().collect();
        classes.sort();
        let reason = format!(
            "no folder `{normal}` of normal images: the folders are {}",
            classes.join(", ")
        );
        return Err(fail(folder, ErrorKind::Folder(reason)));
    }
    let mut by_stem: HashMap<PathBuf, PathBuf> =
        found.drain(..).map(|mask| (stem(&mask), mask)).collect();
    let mut used = HashSet::new();
    let images = files
        .iter()
        .map(|file| {
            let class = class(file).filter(|_| labelled);
            let label = class
                .as_deref()
                .map(|class| class != normal.unwrap_or(GOOD));
            let truth = match masks.as_ref() {
                None => Truth::Unknown,
                Some(masks) => {
                    let names = [with_mask(&stem(file)), stem(file)];
                    match names.into_iter().find(|name| by_stem.contains_key(name)) {
                        Some(name) => {
                            let mask = masks.path.join(&by_stem[&name]);
                            used.insert(name);
                            Truth::Mask(mask)
                        }
                        None if label == Some(false) => Truth::Normal,
                        None => Truth::Unknown,
                    }
                }
            };
            Image {
                path: base.path.join(file),
                name: name(file),
                class,
                label,
                truth,
            }
        })
        .collect();
    by_stem.retain(|stem, _| !used.contains(stem));
    if let (Some(lone), Some(masks)) = (by_stem.values().min(), &masks) {
        let reason = format!(
            "no image in {} belongs to this mask (masks without an image: {})",
            base.path.display(),
            by_stem.len()
        );
        return Err(fail(&masks.path.join(lone), ErrorKind::Folder(reason)));
    }
    Ok(images)
}

/// A folder that is searched for images or masks.
struct Root {
    path: PathBuf,
    canonical: PathBuf,
}

impl Root {
    fn new(path: &Path) -> Result<Root, Error> {
        let canonical = path.canonicalize().and_then(|canonical| {
            if canonical.is_dir() {
                Ok(canonical)
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        Ok(Root {
            canonical: canonical.map_err(|e| fail(path, e.into()))?,
            path: path.into(),
        })
    }

    /// Returns the sorted paths of the images below the folder, except those in `without` and in `ground_truth`.
    fn files(&self, without: Option<&Root>) -> Result<Vec<PathBuf>, Error> {
        let wanted = |entry: &DirEntry| {
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let masks = entry.depth() == 1 && entry.file_name() == GROUND_TRUTH
                || without.is_some_and(|root| {
                    entry.file_type().is_dir()
                        && entry.path().canonicalize().ok().as_ref() == Some(&root.canonical)
                });
            entry.depth() == 0 || !(hidden || masks)
        };
        let entries = WalkDir::new(&self.path)
            .follow_links(true)
            .sort_by_file_name();
        let mut files = Vec::new();
        for entry in entries.into_iter().filter_entry(wanted) {
            let entry = entry.map_err(|e| {
                let path = e.path().unwrap_or(&self.path).to_owned();
                fail(&path, ErrorKind::Io(e.into()))
            })?;
            let path = entry.path();
            if entry.file_type().is_file() && EXTENSIONS.contains(&extension(path).as_str()) {
                files.push(path.strip_prefix(&self.path).unwrap_or(path).to_owned());
            }
        }
        Ok(files)
    }
}

/// Separates masks from images in the same folder. Returns the masks first.
fn separate_masks(files: Vec<PathBuf>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let stems: HashSet<_> = files.iter().map(|file| stem(file)).collect();
    let masked: HashSet<_> = stems.iter().map(|stem| with_mask(stem)).collect();
    let not_png = files.iter().filter(|file| extension(file) != "png");
    let others: HashSet<_> = not_png.map(|file| stem(file)).collect();
    files.into_iter().partition(|file| {
        let stem = stem(file);
        extension(file) == "png" && (masked.contains(&stem) || others.contains(&stem))
    })
}

fn fail(path: &Path, kind: ErrorKind) -> Error {
    Error {
        path: path.into(),
        kind,
    }
}

fn extension(path: &Path) -> String {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.unwrap_or_default().to_ascii_lowercase()
}

fn stem(path: &Path) -> PathBuf {
    path.with_extension("")
}

fn with_mask(stem: &Path) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push("_mask");
    name.into()
}

fn class(file: &Path) -> Option<String> {
    let folder = file.parent()?.iter().next()?;
    Some(folder.to_string_lossy().into_owned())
}

fn name(file: &Path) -> String {
    let parts: Vec<_> = file.iter().map(OsStr::to_string_lossy).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(images: &[Image]) -> Vec<&str> {
        images.iter().map(|p| p.name.as_str()).collect()
    }

    fn refusal(found: Result<Vec<Image>, Error>, folder: &Path) -> String {
        let error = found.unwrap_err();
        assert!(error.is_fatal());
        let folder = folder.display().to_string();
        error.to_string().replace(&folder, "DIR")
    }

    #[test]
    fn a_plain_folder_has_no_labels() {
        let dir = folder(&[
            "b/2.JPG",
            "b/10.tiff",
            "a.png",
            ".c.png",
            "notes.txt",
            ".d/e.png",
        ]);
        let found = images(dir.path(), None, None).unwrap();
        assert_eq!(names(&found), ["a.png", "b/10.tiff", "b/2.JPG"]);
        assert_eq!(found[1].path, dir.path().join("b/10.tiff"));
        for image in &found {
            assert_eq!((&image.class, image.label), (&None, None));
            assert_eq!(image.truth, Truth::Unknown);
        }
    }

    #[test]
    fn anomalibs_layout() {
        let dir = folder(&[
            "train/good/9.png",
            "test/good/0.png",
            "test/crack/0.png",
            "test/crack/deep/1.png",
            "test/lost/0.png",
            "test/loose.png",
            "ground_truth/crack/0_mask.png",
            "ground_truth/crack/deep/1.png",
        ]);
        let masks = dir.path().join("ground_truth");
        let found = images(dir.path(), None, Some(&masks)).unwrap();
        let want = [
            (
                "crack/0.png",
                Some(true),
                Truth::Mask(masks.join("crack/0_mask.png")),
            ),
            (
                "crack/deep/1.png",
                Some(true),
                Truth::Mask(masks.join("crack/deep/1.png")),
            ),
            ("good/0.png", Some(false), Truth::Normal),
            ("loose.png", None, Truth::Unknown),
            ("lost/0.png", Some(true), Truth::Unknown),
        ];
        for (image, (name, label, truth)) in found.iter().zip(&want) {
            assert_eq!((&*image.name, image.label), (*name, *label));
            assert_eq!(&image.truth, truth, "{name}");
        }
        assert_eq!(found.len(), want.len());
        assert_eq!(found[1].class.as_deref(), Some("crack"));
        assert_eq!(found[3].class, None);

        let unmasked = images(dir.path(), None, None).unwrap();
        assert!(unmasked.iter().all(|p| p.truth == Truth::Unknown));
    }

    #[test]
    fn masks_are_no_class() {
        let dir = folder(&[
            "good/0.png",
            "bad/0.png",
            "ground_truth/bad/0.png",
            "masks/bad/0.png",
        ]);
        let masks = dir.path().join("masks");
        let found = images(dir.path(), None, Some(&masks)).unwrap();
        assert_eq!(names(&found), ["bad/0.png", "good/0.png"]);
        assert_eq!(found[0].truth, Truth::Mask(masks.join("bad/0.png")));
    }

    /// The layout of the magnetic tile data set.
    #[test]
    fn masks_beside_their_images() {
        let dir = folder(&[
            "free/1.jpg",
            "free/1.png",
            "break/2.jpg",
            "break/2.png",
            "break/3.png",
            "break/3_mask.png",
        ]);
        let found = images(dir.path(), Some("free"), Some(dir.path())).unwrap();
        assert_eq!(names(&found), ["break/2.jpg", "break/3.png", "free/1.jpg"]);
        assert_eq!(found[2].label, Some(false));
        let of = |p: &str| Truth::Mask(dir.path().join(p));
        assert_eq!(found[0].truth, of("break/2.png"));
        assert_eq!(found[1].truth, of("break/3_mask.png"));
        assert_eq!(found[2].truth, of("free/1.png"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = folder(&["readme.txt"]);
        assert_eq!(
            refusal(images(dir.path(), None, None), dir.path()),
            "DIR: no images found: the supported extensions are png, jpg, jpeg, webp, bmp, tif, tiff"
        );
        let absent = dir.path().join("absent");
        let said = refusal(images(&absent, None, None), dir.path());
        assert!(said.starts_with("DIR/absent: No such file"), "{said}");
        let said = refusal(
            images(&dir.path().join("readme.txt"), None, None),
            dir.path(),
        );
        assert!(
            said.starts_with("DIR/readme.txt: not a directory"),
            "{said}"
        );

        let dir = folder(&[
            "good/0.png",
            "bad/0.png",
            "masks/bad/1_mask.png",
            "masks/bad/0.png",
        ]);
        let masks = dir.path().join("masks");
        assert_eq!(
            refusal(images(dir.path(), None, Some(&masks)), dir.path()),
            "DIR/masks/bad/1_mask.png: no image in DIR belongs to this mask (masks without an image: 1)"
        );
        assert_eq!(
            refusal(images(dir.path(), Some("fine"), Some(&masks)), dir.path()),
            "DIR: no folder `fine` of normal images: the folders are bad, good"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_circle_of_links_is_refused() {
        let dir = folder(&["a/0.png"]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/b")).unwrap();
        let said = refusal(images(dir.path(), None, None), dir.path());
        assert!(said.contains("loop"), "{said}");
    }
}

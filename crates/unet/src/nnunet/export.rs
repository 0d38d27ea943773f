//! Results as `nnUNetv2_export_model_to_zip` packs them: folders in a ZIP archive, deflated.
//!
//! Content: nnU-Net 2.8.1, `nnunetv2/model_sharing/model_export.py`. A checkpoint is an archive itself, of which parts are read in any order;
//! so the files that are needed, and no others, are unpacked into a folder of their own among the system's temporary files, which is removed
//! as soon as the model is loaded.

use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use microtome_io::Archive;
use microtome_io::slide::Limits;

use super::folder;
use crate::model::{BARE_WEIGHTS, Model, ModelOptions};
use crate::{Error, Result};

/// Names and places of two hundred thousand files, far more than an export has.
const MAX_DIRECTORY: u64 = 16 << 20;
/// What is unpacked in all: five folds of a network of two hundred million parameters, with what its optimizer keeps of each.
const MAX_UNPACKED: u64 = 16 << 30;
/// nnU-Net makes five, and one of all cases.
const MAX_FOLDS: usize = 64;

/// An archive, or a folder in one.
#[derive(Debug)]
pub(crate) struct Export {
    archive: Archive,
    path: PathBuf,
    /// The folder that was asked for, with a slash at its end; empty for the archive itself.
    inside: String,
}

/// Opens `model.zip`, or `model.zip/FOLDER`. `None` for what is no archive, or is not there.
pub(crate) fn open(path: &Path) -> Result<Option<Export>> {
    // Without a slash at its end, with which a file would be none.
    let path: &Path = &path.components().collect::<PathBuf>();
    let Some(file) = path.ancestors().find(|p| p.is_file()) else { return Ok(None) };
    let mut limits = Limits::default();
    limits.table_bytes = MAX_DIRECTORY;
    let Some(archive) = Archive::open(file, &limits).map_err(of_archive)? else { return Ok(None) };
    let mut inside = String::new();
    for part in path.strip_prefix(file).unwrap_or(Path::new("")).components() {
        let Component::Normal(name) = part else { return Ok(None) };
        inside.push_str(&name.to_string_lossy());
        inside.push('/');
    }
    Ok(Some(Export { archive, path: file.into(), inside }))
}

impl Export {
    /// Loads the one result of the archive.
    pub(crate) fn load(&self, options: &ModelOptions) -> Result<Model> {
        let results = self.results();
        let [result] = results.as_slice() else {
            let place = self.place(&self.inside);
            if results.is_empty() {
                // PyTorch's checkpoints are such archives, too.
                let message = if self.archive.names().any(|name| name.ends_with("/data.pkl")) {
                    BARE_WEIGHTS
                } else {
                    "an archive without an nnU-Net v2 result (plans.json and dataset.json in one folder)"
                };
                return Err(Error::format(place, message));
            }
            let shown: Vec<String> = results.iter().take(8).map(|r| self.place(r).display().to_string()).collect();
            let more = if results.len() > 8 { format!(" and {} more", results.len() - 8) } else { String::new() };
            let message = format!("several nnU-Net results; give one of them: {}{more}", shown.join(", "));
            return Err(Error::format(place, message));
        };
        let original = self.place(result);
        let temporary = Temporary::new()?;
        // The folder's name is the trainer's, as messages and cards have it.
        let name = original.file_name().filter(|_| !result.is_empty()).unwrap_or("model".as_ref());
        let folder = temporary.0.join(name);
        self.unpack(result, &folder, options)?;
        folder::load(&folder, options).map_err(|error| moved(error, &folder, &original))
    }

    /// What messages call a folder in the archive, given with a slash at its end.
    fn place(&self, folder: &str) -> PathBuf {
        // Joined to nothing, a path would end in a slash.
        let folder = folder.trim_end_matches('/');
        if folder.is_empty() { self.path.clone() } else { self.path.join(folder) }
    }

    /// The folders with plans, with a slash at their ends, below the one asked for.
    fn results(&self) -> Vec<String> {
        let folder = |name: &str| -> Option<String> {
            let folder = name.strip_suffix("plans.json")?;
            let last = folder.trim_end_matches('/').rsplit('/').next()?;
            let is_result = (folder.is_empty() || folder.ends_with('/'))
                && folder.starts_with(&self.inside)
                && !last.starts_with("crossval_results")
                && self.archive.size(&format!("{folder}dataset.json")).is_some();
            is_result.then(|| folder.to_owned())
        };
        self.archive.names().filter_map(folder).collect()
    }

    /// Writes what loading a result needs of it.
    fn unpack(&self, result: &str, folder: &Path, options: &ModelOptions) -> Result<()> {
        let names: Vec<&str> = self.archive.names().filter_map(|name| name.strip_prefix(result)).collect();
        let first = |name: &&str| name.split_once('/').map(|(first, _)| first.to_owned());
        let mut folds: Vec<String> = names.iter().filter_map(first).collect();
        folds.dedup();
        let checkpoint = options.checkpoint.file_name();
        let holds = |fold: &str| self.archive.size(&format!("{result}{fold}/{checkpoint}")).is_some();
        let folds = folder::select_folds(&self.place(result), &folder::sorted_folds(folds), &options.folds, &holds)?;
        if folds.len() > MAX_FOLDS {
            let message = format!("{} folds; up to {MAX_FOLDS} are unpacked: choose some", folds.len());
            return Err(Error::limits(self.place(result), message));
        }
        let mut wanted: Vec<String> = ["plans.json", "dataset.json"].map(Into::into).into();
        wanted.extend(folds.iter().map(|fold| format!("{fold}/{checkpoint}")));
        // Nothing is written under a name that the archive makes up.
        let is_known = |name: &&&str| {
            let folds =
                name.strip_prefix("crossval_results_folds_").and_then(|n| n.strip_suffix("/postprocessing.json"));
            folds
                .is_some_and(|folds| folds.len() < 200 && folds.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        };
        wanted.extend(names.iter().filter(is_known).take(MAX_FOLDS).map(|name| (*name).to_owned()));
        let size = |name: &String| self.archive.size(&format!("{result}{name}")).unwrap_or(0);
        let total = wanted.iter().map(size).fold(0, u64::saturating_add);
        if total > MAX_UNPACKED {
            let message = format!("{total} bytes to unpack; up to {MAX_UNPACKED} are");
            return Err(Error::limits(self.place(result), message));
        }
        for fold in &folds {
            let fold = folder.join(fold);
            std::fs::create_dir_all(&fold).map_err(|e| Error::io(&fold, e))?;
        }
        for name in &wanted {
            let entry = format!("{result}{name}");
            // What is missing is named by who needs it.
            if self.archive.size(&entry).is_none() {
                continue;
            }
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
            let mut file = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
            self.archive.extract(&entry, &mut file).map_err(of_archive)?;
        }
        Ok(())
    }
}

/// A folder of nobody else's, which goes when this does.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = std::env::temp_dir();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("microtome-model-{}-{count}", std::process::id()));
            let mut builder = std::fs::DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            match builder.create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left by a process of the same number that was killed, or put there by somebody else: not ours either way.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && count < 1 << 10 => {}
                Err(error) => return Err(Error::io(path, error)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing can be done about it, and the model is loaded.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same error of a file that lies elsewhere.
fn moved(error: Error, from: &Path, to: &Path) -> Error {
    let at = |path: PathBuf| match path.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
        Ok(rest) => to.join(rest),
        Err(_) => path,
    };
    match error {
        Error::Format { path, message } => Error::Format { path: at(path), message },
        Error::Unsupported { path, message } => Error::Unsupported { path: at(path), message },
        Error::Limits { path, message } => Error::Limits { path: at(path), message },
        Error::Io { path, source } => Error::Io { path: at(path), source },
        other => other,
    }
}

fn of_archive(error: microtome_io::Error) -> Error {
    use microtome_io::Error as Archive;
    match error {
        Archive::Io { path, source } => Error::Io { path, source },
        Archive::Limits { path, message } => Error::Limits { path, message },
        Archive::Unsupported { path, message } => Error::Unsupported { path, message },
        Archive::Format { path, message } => Error::Format { path, message },
        other => Error::Usage { message: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Folds;

    /// A ZIP archive of entries that are stored as they are.
    fn stored(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for (name, content) in entries {
            let mut sum = flate2::Crc::new();
            sum.update(content);
            let offset = bytes.len() as u32;
            let length = (content.len() as u32).to_le_bytes();
            let mut head = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            head.extend(sum.sum().to_le_bytes());
            head.extend([length, length].concat());
            head.extend((name.len() as u16).to_le_bytes());
            head.extend([0, 0]);
            bytes.extend(*b"PK\x03\x04");
            bytes.extend(&head);
            bytes.extend(name.bytes());
            bytes.extend(*content);
            directory.extend(*b"PK\x01\x02\x14\x00");
            directory.extend(&head);
            directory.extend([0; 10]);
            directory.extend(offset.to_le_bytes());
            directory.extend(name.bytes());
        }
        let start = bytes.len() as u32;
        let count = (entries.len() as u16).to_le_bytes();
        bytes.extend(&directory);
        bytes.extend(*b"PK\x05\x06\0\0\0\0");
        bytes.extend([count, count].concat());
        bytes.extend((directory.len() as u32).to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend([0, 0]);
        bytes
    }

    const TRAINER: &str = "Dataset999_Random/nnUNetTrainer__randomPlans__2d";

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/nnunet/residual-encoder/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    /// What an export of the result folder under tests/nnunet holds, and a file that nobody needs.
    fn entries() -> Vec<(String, Vec<u8>)> {
        let found = br#"{"postprocessing_fns": [], "postprocessing_kwargs": []}"#;
        let content = [
            ("fold_0/checkpoint_final.pth", file("fold_0/checkpoint_final.pth")),
            ("fold_0/progress.png", b"no picture".to_vec()),
            ("crossval_results_folds_0/postprocessing.json", found.to_vec()),
            ("crossval_results_folds_0/plans.json", b"{}".to_vec()),
            ("crossval_results_folds_0/dataset.json", b"{}".to_vec()),
            ("plans.json", file("plans.json")),
            ("dataset.json", file("dataset.json")),
        ];
        content.map(|(name, bytes)| (format!("{TRAINER}/{name}"), bytes)).into()
    }

    fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
        stored(&entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>())
    }

    fn folder() -> Model {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nnunet/residual-encoder");
        Model::open(path, &ModelOptions::default()).unwrap()
    }

    #[test]
    fn an_export_is_the_folder_it_was_made_from() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("model.zip");
        std::fs::write(&path, archive(&entries())).unwrap();
        let expected = folder();
        for path in [path.clone(), path.join("Dataset999_Random"), path.join(TRAINER)] {
            let model = Model::open(&path, &ModelOptions::default()).unwrap();
            assert_eq!(model.card().sha256, expected.card().sha256);
            assert_eq!(model.card().provenance, expected.card().provenance);
            assert_eq!(model.card().postprocessing, Some(Vec::new()));
        }
        // Without any folder around it.
        let bare: Vec<_> = entries().into_iter().map(|(n, b)| (n[TRAINER.len() + 1..].to_owned(), b)).collect();
        std::fs::write(&path, archive(&bare)).unwrap();
        assert_eq!(Model::open(&path, &ModelOptions::default()).unwrap().card().sha256, expected.card().sha256);
    }

    #[test]
    fn what_is_wrong_is_said_of_the_archive_and_nothing_stays_behind() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("model.zip");
        let ours = || {
            let prefix = format!("microtome-model-{}-", std::process::id());
            let entries = std::fs::read_dir(std::env::temp_dir()).unwrap();
            entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(&prefix)).count()
        };
        let message = |bytes: &[u8], inside: &str, options: &ModelOptions| {
            std::fs::write(&path, bytes).unwrap();
            let error = Model::open(path.join(inside), options).unwrap_err().to_string();
            error.replace(&path.display().to_string(), "ZIP").replace(TRAINER, "TRAINER")
        };
        let auto = ModelOptions::default();
        let changed = |change: &dyn Fn(&mut Vec<(String, Vec<u8>)>)| {
            let mut entries = entries();
            change(&mut entries);
            archive(&entries)
        };
        let none = "an archive without an nnU-Net v2 result (plans.json and dataset.json in one folder)";
        assert_eq!(message(&stored(&[("a.txt", b"a")]), "", &auto), format!("ZIP: {none}"));
        let both = changed(&|e| {
            e.push(("Dataset1/a/plans.json".into(), b"{}".to_vec()));
            e.push(("Dataset1/a/dataset.json".into(), b"{}".to_vec()));
        });
        assert_eq!(
            message(&both, "", &auto),
            "ZIP: several nnU-Net results; give one of them: ZIP/Dataset1/a, ZIP/TRAINER"
        );
        assert!(message(&both, "Dataset1", &auto).ends_with("no folds (fold_0, fold_1, ... or fold_all)"));
        let second = ModelOptions { folds: Folds::List(vec![1]), ..ModelOptions::default() };
        assert_eq!(message(&archive(&entries()), "", &second), "ZIP/TRAINER: fold_1 is missing; there are fold_0");
        let best = ModelOptions { checkpoint: crate::Checkpoint::Best, ..ModelOptions::default() };
        assert_eq!(
            message(&archive(&entries()), "", &best),
            "ZIP/TRAINER: fold_0/checkpoint_best.pth is missing from this nnU-Net result folder"
        );
        let plans = changed(&|e| e[5].1 = b"{".to_vec());
        assert!(message(&plans, "", &auto).starts_with("ZIP/TRAINER/plans.json: not JSON: "));
        let out = changed(&|e| e.push(("../../evil".into(), Vec::new())));
        assert!(message(&out, "", &auto).contains("would lead out of its folder"));
        let mut damaged = archive(&entries());
        damaged[200] ^= 1;
        assert_eq!(
            message(&damaged, "", &auto),
            "ZIP/TRAINER/fold_0/checkpoint_final.pth: the entry of the archive is damaged: its size or its checksum is not what the directory says"
        );
        let whole = archive(&entries());
        assert!(message(&whole[..whole.len() - 1], "", &auto).contains("truncated"));
        assert_eq!(ours(), 0);
    }
}

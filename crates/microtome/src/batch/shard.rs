//! A share of the slides, for each of several machines that do not know of each other.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::folder::{self, Folder};
use super::manifest::{Entry, Source};
use crate::{Error, Result};

/// More shards than any cluster has machines.
const MOST: u64 = 1 << 20;

/// One of several shares of the slides. They are counted from 0, as `SLURM_ARRAY_TASK_ID` and `JOB_COMPLETION_INDEX` do.
///
/// ```
/// use microtome::batch::Shard;
///
/// let shard: Shard = "3/4".parse()?;
/// assert_eq!((shard.index, shard.count), (3, 4));
/// assert!("4/4".parse::<Shard>().is_err());
///
/// // An array of Slurm's that begins at 1.
/// let names = |name: &str| match name {
///     "SLURM_ARRAY_TASK_ID" => Some("2".to_string()),
///     "SLURM_ARRAY_TASK_MIN" => Some("1".to_string()),
///     "SLURM_ARRAY_TASK_MAX" => Some("8".to_string()),
///     "SLURM_ARRAY_TASK_COUNT" => Some("8".to_string()),
///     _ => None,
/// };
/// assert_eq!(Shard::from_environment(names)?.to_string(), "1/8");
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shard {
    /// Which, from 0 on.
    pub index: u64,
    /// Of how many.
    pub count: u64,
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no shard, such as 0/4: they count from 0, so that the last of four is 3/4");
        let (index, count) = text.split_once('/').ok_or_else(wrong)?;
        let (index, count) = (index.parse().map_err(|_| wrong())?, count.parse().map_err(|_| wrong())?);
        if index < count && count <= MOST { Ok(Self { index, count }) } else { Err(wrong()) }
    }
}

impl Shard {
    /// The share that a cluster's engine gives this process, by the variables of the environment that `get` looks up: those of a job array
    /// of Slurm (`SLURM_ARRAY_TASK_ID` less `SLURM_ARRAY_TASK_MIN`, of `SLURM_ARRAY_TASK_COUNT`), or of an Indexed Job of Kubernetes
    /// (`JOB_COMPLETION_INDEX`, of `JOB_COMPLETION_COUNT`, which the Job's manifest has to set: Kubernetes does not tell it).
    ///
    /// # Errors
    /// A sentence, if there are none, or they contradict each other: an array such as `0-10:2` has gaps, in which no task would run.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str| match get(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{name} is {text:?}, which is no number")),
            },
        };
        let shard = |index: u64, count: u64, of: &str| {
            let shard = format!("{index}/{count}").parse::<Self>();
            shard.map_err(|_| format!("task {index} of {count}, as {of} say, is no shard"))
        };
        if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let Some(count) = number("SLURM_ARRAY_TASK_COUNT")? else {
                return Err("SLURM_ARRAY_TASK_ID is set, and SLURM_ARRAY_TASK_COUNT is not".into());
            };
            let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            if let Some(last) = number("SLURM_ARRAY_TASK_MAX")?
                && last.checked_sub(first).and_then(|span| span.checked_add(1)) != Some(count)
            {
                return Err(format!(
                    "the array has {count} tasks from {first} to {last}: only one without gaps says which share is whose; \
                     --shard I/N says it otherwise"
                ));
            }
            let index = id.checked_sub(first).ok_or("SLURM_ARRAY_TASK_ID is less than SLURM_ARRAY_TASK_MIN")?;
            return shard(index, count, "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT");
        }
        if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            let Some(count) = number("JOB_COMPLETION_COUNT")? else {
                return Err(
                    "JOB_COMPLETION_INDEX is set, and JOB_COMPLETION_COUNT is not: Kubernetes does not tell a \
                     Job how many completions it has, so its manifest must set this variable to the same number"
                        .into(),
                );
            };
            return shard(index, count, "JOB_COMPLETION_INDEX and JOB_COMPLETION_COUNT");
        }
        Err("--shard auto takes the share from SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or JOB_COMPLETION_INDEX \
             and JOB_COMPLETION_COUNT, and none of them is set"
            .into())
    }
}

/// Whose each slide is: the number of a shard by its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shares {
    shards: u64,
    slides: BTreeMap<String, u64>,
}

/// The rule: slides are taken from the largest to the smallest, those of equal size in the order of their ids, and each goes to the shard
/// that has least by then, the first of several. (Graham's longest processing time first: no shard has more than 4/3 of what the best
/// division would give.) Each slide counts a little besides its bytes, so that those of unknown size are divided, too.
fn divide(sizes: &BTreeMap<&str, u64>, count: u64) -> Shares {
    let mut slides: Vec<(&str, u64)> = sizes.iter().map(|(id, bytes)| (*id, *bytes)).collect();
    slides.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut loads: std::collections::BinaryHeap<_> =
        (0..count).map(|shard| std::cmp::Reverse((0_u64, shard))).collect();
    let mut shares = BTreeMap::new();
    for (id, bytes) in slides {
        let Some(std::cmp::Reverse((load, shard))) = loads.pop() else { unreachable!("there is a shard") };
        shares.insert(id.to_owned(), shard);
        loads.push(std::cmp::Reverse((load.saturating_add(bytes).saturating_add(1 << 20), shard)));
    }
    Shares { shards: count, slides: shares }
}

/// Of each slide whether it is of the shard.
///
/// Sizes are those of the manifest's column `bytes`, or are asked of the disk. What was found first is kept in the batch's folder, by one that
/// creates the file and all others that read it: a slide that grows, or is out of sight for a moment, stays with its shard, so that no slide
/// is done twice, and none by nobody. A manifest with other ids is divided anew.
pub(super) fn select(entries: &[Entry], shard: Shard, folder: &Folder, keep: Keep) -> Result<Vec<bool>> {
    if shard.count == 1 {
        return Ok(vec![true; entries.len()]);
    }
    let ids: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    let path = folder.shares(shard.count, &folder::digest(&sorted.join("\n")));
    let known = |shares: &Shares| shares.shards == shard.count && ids.iter().all(|id| shares.slides.contains_key(*id));
    let shares = if let Some(shares) = folder::json::<Shares>(&path).filter(known) {
        shares
    } else {
        let sizes = entries.iter().map(|entry| (entry.id.as_str(), size(entry))).collect();
        let shares = divide(&sizes, shard.count);
        match keep {
            Keep::No => shares,
            Keep::Yes => first(&path, shares)?,
        }
    };
    Ok(ids.iter().map(|id| shares.slides.get(*id) == Some(&shard.index)).collect())
}

/// Whether the division is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}

/// Puts the file there unless another process was faster, and gives what is there then.
fn first(path: &Path, shares: Shares) -> Result<Shares> {
    let name = format!("{}.{}.part", path.display(), folder::unique());
    let partial = Path::new(&name);
    folder::put_json(partial, &shares)?;
    // A link is made by one only, on any file system that has them, and the file is whole from the first moment on.
    let linked = std::fs::hard_link(partial, path);
    let result = match linked {
        Ok(()) => Ok(shares),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // One that cannot be believed is nobody's word.
            folder::json(path).map_or_else(|| std::fs::rename(partial, path).map(|()| shares), Ok)
        }
        // Where there are no links, the last of those that begin in the same moment counts; they have seen the same disk.
        Err(_) => std::fs::rename(partial, path).map(|()| shares),
    };
    // It has been renamed, or is not needed any more.
    let _ = std::fs::remove_file(partial);
    result.map_err(|source| Error::Io { path: path.into(), source })
}

/// Bytes of a slide: the manifest's word, or those of its file or of all files of its folder. What cannot be seen has none.
fn size(entry: &Entry) -> u64 {
    match (entry.bytes, &entry.slide) {
        (Some(bytes), _) => bytes,
        (None, Source::Url(_)) => 0,
        (None, Source::File(path)) => super::files::bytes_of(path).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Shard, String> {
        Shard::from_environment(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_share_is_told_by_the_engine_or_nobody() {
        let slurm = |id, count, min, max| {
            environment(&[
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_COUNT", count),
                ("SLURM_ARRAY_TASK_MIN", min),
                ("SLURM_ARRAY_TASK_MAX", max),
            ])
        };
        assert_eq!(slurm("0", "4", "0", "3"), Ok(Shard { index: 0, count: 4 }));
        assert_eq!(slurm("4", "4", "1", "4"), Ok(Shard { index: 3, count: 4 }));
        assert!(slurm("4", "3", "0", "4").unwrap_err().contains("gaps"));
        assert!(slurm("x", "3", "0", "2").unwrap_err().contains("no number"));
        assert!(slurm("0", "4", "1", "4").is_err());
        assert!(environment(&[("SLURM_ARRAY_TASK_ID", "1")]).unwrap_err().contains("SLURM_ARRAY_TASK_COUNT"));
        let kubernetes = environment(&[("JOB_COMPLETION_INDEX", "2"), ("JOB_COMPLETION_COUNT", "3")]);
        assert_eq!(kubernetes, Ok(Shard { index: 2, count: 3 }));
        assert!(environment(&[("JOB_COMPLETION_INDEX", "2")]).unwrap_err().contains("JOB_COMPLETION_COUNT"));
        assert!(environment(&[]).unwrap_err().contains("none of them is set"));
        for text in ["", "1", "4/4", "-1/4", "0/0", "1/2/3", "0/99999999", "a/b"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_disjoint_balanced_and_independent_of_the_order() {
        let sizes: Vec<(String, u64)> =
            (0..101_u64).map(|i| (format!("slide-{i}"), (i * i * 7919 % 4000) << 20)).collect();
        let of = |sizes: &[(String, u64)], count| {
            divide(&sizes.iter().map(|(id, bytes)| (id.as_str(), *bytes)).collect(), count)
        };
        for count in [1, 2, 4, 7, 150] {
            let shares = of(&sizes, count);
            assert_eq!(shares.slides.len(), sizes.len());
            let reversed: Vec<_> = sizes.iter().rev().cloned().collect();
            assert_eq!(shares, of(&reversed, count));
            let load = |shard| -> u64 {
                let mine = sizes.iter().filter(|(id, _)| shares.slides[id] == shard);
                mine.map(|(_, bytes)| bytes + (1 << 20)).sum()
            };
            let loads: Vec<u64> = (0..count).map(load).collect();
            let all: u64 = loads.iter().sum();
            let largest = sizes.iter().map(|(_, bytes)| bytes + (1 << 20)).max().unwrap();
            // Graham, 1969: 4/3 - 1/(3 n) of the best, which is at least the mean, and at least the largest.
            let best = (all as f64 / count as f64).max(largest as f64);
            let most = *loads.iter().max().unwrap() as f64;
            assert!(most <= best * (4.0 / 3.0), "{count}: {most} of {best}");
        }
        // Without any size they are as many as can be in each.
        let unknown: Vec<_> = sizes.iter().map(|(id, _)| (id.clone(), 0)).collect();
        let shares = of(&unknown, 4);
        let counts = [0, 1, 2, 3].map(|shard| shares.slides.values().filter(|s| **s == shard).count());
        assert_eq!(counts, [26, 25, 25, 25]);
    }

    #[test]
    fn a_slide_that_changes_its_size_stays_with_its_shard() {
        let place = tempfile::tempdir().unwrap();
        let slides = place.path().join("slides");
        std::fs::create_dir(&slides).unwrap();
        let entries = |order: &[usize]| {
            let text: String = order.iter().map(|i| format!("slides/{i},s{i}\n")).collect();
            let path = place.path().join("m.csv");
            std::fs::write(&path, format!("slide,id\n{text}")).unwrap();
            super::super::Manifest::read(&path).unwrap().entries().to_vec()
        };
        for i in 0..12 {
            std::fs::write(slides.join(i.to_string()), vec![0; 1000 * (i * 5 % 12 + 1)]).unwrap();
        }
        let folder = Folder::new(&place.path().join("out"));
        folder.create().unwrap();
        let order: Vec<usize> = (0..12).collect();
        let shares = |order: &[usize], keep| {
            let entries = entries(order);
            let mut all = vec![Vec::new(); 12];
            for index in 0..4 {
                let mine = select(&entries, Shard { index, count: 4 }, &folder, keep).unwrap();
                for (entry, _) in entries.iter().zip(mine).filter(|(_, mine)| *mine) {
                    all[entry.id[1..].parse::<usize>().unwrap()].push(index);
                }
            }
            all
        };
        let planned = shares(&order, Keep::No);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a plan leaves nothing");
        let begun = shares(&order, Keep::Yes);
        assert_eq!(planned, begun);
        assert!(begun.iter().all(|of| of.len() == 1), "each slide is of one shard: {begun:?}");
        std::fs::write(slides.join("3"), vec![0; 1 << 20]).unwrap();
        std::fs::remove_file(slides.join("7")).unwrap();
        let reversed: Vec<usize> = (0..12).rev().collect();
        assert_eq!(shares(&reversed, Keep::Yes), begun);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "one file, and nothing half written");
        // The only shard has all slides, and keeps nothing.
        let alone = Shard { index: 0, count: 1 };
        assert_eq!(select(&entries(&order), alone, &folder, Keep::Yes).unwrap(), [true; 12]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

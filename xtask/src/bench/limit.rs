//! A hard limit on the memory of a child.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Who enforces it.
#[derive(Debug, Clone)]
pub(super) enum Enforcer {
    /// A control group under the one given, of version 1 or 2: more than the limit and the kernel reclaims, then kills.
    /// Only where a person named the group: making groups beside those that some supervisor keeps is not for us to decide.
    ControlGroup(PathBuf),
    /// `RLIMIT_DATA`, which everybody may lower: writable private memory that is mapped, touched or not, stacks of threads included.
    /// It is stricter: more than the limit and an allocation fails.
    Data,
}

impl Enforcer {
    /// In words, for the table.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::ControlGroup(_) => "control group",
            Self::Data => "RLIMIT_DATA (ulimit -d)",
        }
    }

    /// Calls `run` with a command that does what `command` does under a limit of so many bytes.
    pub(super) fn limited<T>(
        &self,
        bytes: u64,
        command: &Command,
        run: impl FnOnce(&mut Command) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Data => {
                run(&mut through_shell(r#"ulimit -d "$0" && exec "$@""#, &(bytes / 1024).to_string(), command))
            }
            Self::ControlGroup(parent) => {
                let group = Group::create(parent, bytes)?;
                let processes = group.0.join("cgroup.procs").display().to_string();
                run(&mut through_shell(r#"echo $$ > "$0" && exec "$@""#, &processes, command))
            }
        }
    }
}

/// The command behind a line of shell script that ends in `exec "$@"`, so that it has the process id of the shell; `$0` is `argument`.
fn through_shell(script: &str, argument: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, argument]).arg(command.get_program()).args(command.get_args());
    shell
}

/// A control group of ours, removed with the value.
#[derive(Debug)]
struct Group(PathBuf);

impl Group {
    fn create(parent: &Path, bytes: u64) -> Result<Self> {
        let path = parent.join(format!("microtome-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let group = Self(path);
        for (file, swap) in
            [("memory.max", "memory.swap.max"), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")]
        {
            let (file, swap) = (group.0.join(file), group.0.join(swap));
            if file.exists() {
                fs::write(&file, bytes.to_string()).with_context(|| file.display().to_string())?;
                if swap.exists() {
                    // Version 2 counts swap by itself, version 1 together with memory.
                    let limit = if swap.ends_with("memory.swap.max") { 0 } else { bytes };
                    fs::write(&swap, limit.to_string()).with_context(|| swap.display().to_string())?;
                }
                return Ok(group);
            }
        }
        bail!(
            "{}: no memory.max and no memory.limit_in_bytes: not a group with the memory controller",
            parent.display()
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An empty group can be removed. One that still holds a process is reported by its own existence.
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::child;

    #[test]
    fn the_data_limit_reaches_the_program_and_its_arguments_do() {
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -d; echo "$0""#, "one 'word"]);
        let run = Enforcer::Data.limited(300 << 20, &command, child::measure).unwrap();
        assert_eq!(run.output, format!("{}\none 'word\n", 300 << 10));
    }

    #[test]
    fn more_than_the_data_limit_fails() {
        // `tail` keeps a line until its end.
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 200000000 /dev/zero | tail | wc -c"]);
        let run = Enforcer::Data.limited(50 << 20, &command, child::measure).unwrap();
        assert_ne!(run.output.trim(), "200000000");
        let run = Enforcer::Data.limited(500 << 20, &command, child::measure).unwrap();
        assert_eq!(run.output.trim(), "200000000");
    }

    #[test]
    fn a_folder_without_the_memory_controller_is_refused() {
        let folder = std::env::temp_dir().join(format!("microtome-no-group-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let group = Enforcer::ControlGroup(folder.clone());
        let error = group.limited(1 << 20, &Command::new("true"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("memory controller"), "{error}");
        // Nothing is left in it.
        fs::remove_dir(folder).unwrap();
    }
}

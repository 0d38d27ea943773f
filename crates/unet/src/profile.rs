//! Where the time of a predictor went.

use std::fmt;

use serde::Serialize;

/// Where a predictor's time has gone since it was made, in seconds of the threads that lead forward passes: those that help them, and
/// those that wait, are not counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// Forward passes: of every fold and every mirroring.
    pub passes: u64,
    /// The network's steps in the order in which they run.
    pub steps: Vec<StepTime>,
    /// Around them: normalising and mirroring pixels, adding up and checking logits.
    pub around: f64,
}

/// One step of a network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// What it computes.
    pub name: String,
    /// How.
    pub algorithm: &'static str,
    /// Multiplications, each with its addition, of one pass, by the definition: an algorithm may need fewer. 0 where it is no convolution.
    pub multiplications: u64,
    /// Seconds of all passes.
    pub seconds: f64,
}

impl Profile {
    /// Seconds of all steps and around them.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.steps.iter().map(|step| step.seconds).sum::<f64>() + self.around
    }

    /// The share of the time that no convolution took, 0 to 1.
    #[must_use]
    pub fn outside_convolutions(&self) -> f64 {
        let convolutions: f64 = self.steps.iter().filter(|s| s.multiplications > 0).map(|s| s.seconds).sum();
        let total = self.total();
        if total > 0.0 { 1.0 - convolutions / total } else { 0.0 }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let each = 1e3 / self.passes.max(1) as f64;
        let share = |seconds: f64| if total > 0.0 { 100.0 * seconds / total } else { 0.0 };
        let width = self.steps.iter().map(|s| s.name.len()).max().unwrap_or(0).max(10);
        writeln!(f, "{:width$} {:>9} {:>10} {:>6} {:>8}", "step", "", "ms", "%", "GFLOP/s")?;
        for StepTime { name, algorithm, multiplications, seconds } in &self.steps {
            write!(f, "{name:width$} {algorithm:>9} {:10.3} {:6.1}", seconds * each, share(*seconds))?;
            if *multiplications > 0 && *seconds > 0.0 {
                write!(f, " {:8.1}", 2e-9 * *multiplications as f64 * self.passes as f64 / seconds)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "{:width$} {:>9} {:10.3} {:6.1}", "around", "", self.around * each, share(self.around))?;
        write!(
            f,
            "{} passes of {:.3} ms; {:.1} % of the time outside convolutions",
            self.passes,
            total * each,
            100.0 * self.outside_convolutions()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_adds_up() {
        let step = |name: &str, multiplications, seconds| StepTime {
            name: name.into(),
            algorithm: "direct",
            multiplications,
            seconds,
        };
        let steps = vec![step("convolution", 1_000_000_000, 0.5), step("sum", 0, 0.25)];
        let profile = Profile { passes: 10, steps, around: 0.25 };
        assert_eq!((profile.total(), profile.outside_convolutions()), (1.0, 0.5));
        let text = profile.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["convolution", "direct", "50.000", "50.0", "40.0"]
        );
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["sum", "direct", "25.000", "25.0"]);
        assert_eq!(lines[4], "10 passes of 100.000 ms; 50.0 % of the time outside convolutions");
        let nothing = Profile { passes: 0, steps: Vec::new(), around: 0.0 };
        assert!(nothing.to_string().ends_with("0 passes of 0.000 ms; 0.0 % of the time outside convolutions"));
    }
}

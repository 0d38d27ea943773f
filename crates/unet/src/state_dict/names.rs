//! Under which of their names weights are looked for: as they are, and without what wrappers have put before them.

/// What training programs put before all names: the attribute of the class that holds the network (Lightning, nnU-Net, MONAI).
const OUTER: [&str; 6] = ["model.", "net.", "network.", "_model.", "module.", "_orig_mod."];
/// How many of these are taken off, one after the other.
const DEPTH: usize = 4;

/// The ways to read these names, each a list as long as theirs: the plainest way first. Only one decides: the first that fits the network.
/// A network whose own modules are called `model` is safe, because its names fit as they are.
pub(super) fn readings<'a>(names: &[&'a str]) -> Vec<Vec<&'a str>> {
    let mut readings = vec![names.to_vec()];
    let plain: Vec<&str> = names.iter().map(|name| without_wrappers(name)).collect();
    if plain != *names {
        readings.push(plain.clone());
    }
    let mut current = plain;
    for _ in 0..DEPTH {
        let common = OUTER.into_iter().find(|outer| current.iter().all(|name| name.starts_with(outer)));
        let Some(outer) = common.filter(|_| !current.is_empty()) else { break };
        current = current.iter().map(|name| without_wrappers(&name[outer.len()..])).collect();
        readings.push(current.clone());
    }
    readings
}

/// Without what wrappers put before names: `module.` (data parallel training), `_orig_mod.` (`torch.compile`).
fn without_wrappers(mut name: &str) -> &str {
    while let Some(rest) = ["module.", "_orig_mod."].into_iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_recognised() {
        assert_eq!(without_wrappers("module._orig_mod.encoder.x"), "encoder.x");
        assert_eq!(without_wrappers("encoder.module.x"), "encoder.module.x");
    }

    #[test]
    fn a_prefix_goes_where_all_names_have_it() {
        assert_eq!(readings(&["a.w", "model.b"]), [["a.w", "model.b"]]);
        assert_eq!(readings(&["model.a", "model.model.b"]), [["model.a", "model.model.b"], ["a", "model.b"]]);
        assert_eq!(readings(&["module.a", "b"]), [["module.a", "b"], ["a", "b"]]);
        let lightning = readings(&["model._orig_mod.net.a"]);
        assert_eq!(lightning, [["model._orig_mod.net.a"], ["net.a"], ["a"]]);
        assert_eq!(readings(&[]), [[""; 0]]);
        assert!(readings(&["model.model.model.model.model.model.model.a"]).len() <= 1 + DEPTH);
    }
}

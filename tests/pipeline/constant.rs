//! A model that says the same everywhere gives a mask that is the same everywhere.

use microtome::io::Size;
use microtome::unet::{Output, Window};
use microtome_testkit::{ConstantModel, SyntheticSlide};

use crate::{assert_pyramid, assert_same, levels_of, segment, settings};

/// One pixel, lines, smaller than any tile, odd, larger than a shard (32 pixels), several shards.
const SIZES: [Size; 8] = [
    Size::new(1, 1),
    Size::new(1, 50),
    Size::new(70, 1),
    Size::new(7, 5),
    Size::new(33, 31),
    Size::new(64, 64),
    Size::new(65, 97),
    Size::new(131, 70),
];
const TILES: [Size; 3] = [Size::new(16, 16), Size::new(24, 40), Size::new(64, 64)];
const STEPS: [f64; 4] = [0.25, 0.5, 0.7, 1.0];

/// Runs the model over everything above; the mask must be `expected` everywhere, on every level.
fn check(logits: &[f32], output: &Output, window: Window, expected: u16) {
    for size in SIZES {
        let slide = SyntheticSlide::new(size, 1);
        for tile in TILES {
            let mut model = ConstantModel::new(tile, logits);
            model.card_mut().window = window;
            if let Output::Regions { class_order } = output {
                // Regions have a background besides, which no logit stands for.
                let classes = class_order.iter().copied().chain([0]).collect::<std::collections::BTreeSet<_>>();
                let class = |value| microtome::io::Class::with_default_color(value, format!("region {value}"));
                model.card_mut().classes = classes.into_iter().map(class).collect();
                model.card_mut().output = output.clone();
            }
            for step in STEPS {
                let mut settings = settings();
                settings.step = Some(step);
                let (mask, summary) = segment(&slide, &model, &settings);
                let what = format!("{size}, tiles of {tile}, step {step}, {window:?}, {logits:?}");
                assert_eq!((summary.tiles.run, summary.tiles.skipped), (summary.tiles.grid, 0), "{what}");
                let levels = levels_of(&mask);
                assert_eq!(levels[0].0, size, "{what}");
                for (size, labels) in &levels {
                    assert_same(*size, labels, &vec![expected; size.area() as usize], &what);
                }
                assert_pyramid(&levels, 16, &what);
                let counted: u64 = summary.areas.iter().map(|area| area.pixels).sum();
                assert_eq!(counted, if expected == 0 { 0 } else { size.area() }, "{what}");
            }
        }
    }
}

#[test]
fn labels_are_constant() {
    check(&[0.1, 0.3, 0.2], &Output::Labels, Window::Gaussian, 1);
    check(&[-3.0, -2.5, -1.0e-3, -7.0], &Output::Labels, Window::Constant, 2);
    check(&[4.0, 3.0], &Output::Labels, Window::Gaussian, 0);
}

#[test]
fn of_equal_logits_the_first_wins_everywhere() {
    check(&[-0.1, 0.7, 0.7], &Output::Labels, Window::Gaussian, 1);
}

#[test]
fn regions_are_constant() {
    let regions = |class_order: &[u16]| Output::Regions { class_order: class_order.to_vec() };
    // Later regions overwrite earlier ones where their logit is positive.
    check(&[0.4, 1.0e-3], &regions(&[3, 1]), Window::Gaussian, 1);
    check(&[0.4, -1.0e-3], &regions(&[3, 1]), Window::Constant, 3);
    // Zero is no more than background; and a label above 255 takes 16 bits.
    check(&[0.0, -1.0], &regions(&[1, 2]), Window::Gaussian, 0);
    check(&[0.1, 0.2], &regions(&[1, 300]), Window::Gaussian, 300);
}

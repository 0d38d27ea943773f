//! What is drawn below a picture, so that nothing of it is hidden: a legend, a scale bar.

use microtome_io::{Class, Pixels, Rect, SampleType, Samples, Size};

use super::font;
use super::overlay::rgb;
use crate::{Error, Result};

/// Adds a legend below a picture: for each class other than the background (value 0) a swatch of its colour, its name, and its code in
/// parentheses where there is one, in the order of the table.
///
/// Letters grow with the picture's longest side. They are those of ASCII; some others are spelt with these (`é` as `e`, `µ` as `u`), the
/// rest are boxes. An entry that is wider than the picture is cut, but for its first 20 letters: the picture, which becomes RGB, is made wider where
/// these are wider than it.
///
/// # Errors
/// [`Error::Usage`] if there is no class to show, or so many that the picture would have more than 65535 pixels to a side; or if it is neither grey
/// nor RGB of 8 bits.
pub fn with_legend(picture: &Pixels, classes: &[Class]) -> Result<Pixels> {
    let dot = dot(picture.size());
    let (line, gap, swatch) = ((font::HEIGHT + 4) * dot, 4 * dot, font::HEIGHT * dot);
    let room = picture.size().width.saturating_sub(gap + swatch + gap + gap);
    let most = ((room / (font::ADVANCE * dot)) as usize).max(LEAST_LETTERS);
    let entry = |class: &Class| (font::shortened(&label(class), most), class.color);
    let entries: Vec<(String, [u8; 3])> = classes.iter().filter(|class| class.value != 0).map(entry).collect();
    if entries.is_empty() {
        return Err(Error::Usage("there are no classes that a legend could name".into()));
    }
    let widths: Vec<u64> = entries.iter().map(|(text, _)| swatch + gap + font::width(text) * dot).collect();
    let width = picture.size().width.max(widths.iter().max().map_or(0, |widest| widest + 2 * gap));
    // Where each entry goes: from left to right, as many to a line as fit.
    let (mut places, mut x, mut y) = (Vec::with_capacity(entries.len()), gap, 0);
    for entry in &widths {
        if x > gap && x + entry + gap > width {
            (x, y) = (gap, y + line);
        }
        places.push((x, y));
        x += entry + 3 * gap;
    }
    let mut canvas = Canvas::under(picture, Size::new(width, y + line + gap))?;
    for ((text, color), (x, y)) in entries.iter().zip(places) {
        canvas.fill(Rect::new(x as i64, (y + gap) as i64, swatch, swatch), BLACK);
        let inside = Rect::new((x + dot) as i64, (y + gap + dot) as i64, swatch - 2 * dot, swatch - 2 * dot);
        canvas.fill(inside, *color);
        canvas.text(text, x + swatch + gap, y + gap, dot);
    }
    Ok(canvas.finish())
}

/// Letters of an entry of a legend that are shown however narrow the picture is.
const LEAST_LETTERS: usize = 20;

/// Adds a scale bar below a picture whose pixels measure `mpp` micrometres from left to right: a bar of a round length (1, 2 or 5 times a
/// power of ten), at most a quarter of the picture's width if that is not tiny, and its length as text, in um or mm.
///
/// The picture becomes RGB, and wider where the bar with its text is wider than it.
///
/// # Errors
/// [`Error::Usage`] for a resolution that is not within 1e-6 to 1e6, or a picture that is neither grey nor RGB of 8 bits.
pub fn with_scale_bar(picture: &Pixels, mpp: f64) -> Result<Pixels> {
    if !(1e-6..=1e6).contains(&mpp) {
        return Err(Error::Usage(format!(
            "a scale bar for pixels of {mpp:?} um cannot be drawn: no slide has such a resolution (1e-6 to 1e6 um can be drawn)"
        )));
    }
    let dot = dot(picture.size());
    let gap = 4 * dot;
    // A bar of a few pixels would be a blot.
    let most = (picture.size().width as f64 / 4.0).max(20.0 * dot as f64) * mpp;
    let length = round_length(most);
    let text = length_text(length);
    let pixels = ((length / mpp).round() as u64).max(1);
    let width = gap + pixels + gap + font::width(&text) * dot + gap;
    let height = gap + font::HEIGHT * dot + gap;
    let mut canvas = Canvas::under(picture, Size::new(width.max(picture.size().width), height))?;
    canvas.fill(Rect::new(gap as i64, (gap + 2 * dot) as i64, pixels, 3 * dot), BLACK);
    canvas.text(&text, gap + pixels + gap, gap, dot);
    Ok(canvas.finish())
}

/// The largest of 1, 2 and 5 times a power of ten that is not above a number.
fn round_length(most: f64) -> f64 {
    let power = 10f64.powi(most.log10().floor() as i32);
    let digit = [5.0, 2.0].into_iter().find(|digit| digit * power <= most).unwrap_or(1.0);
    digit * power
}

/// A round length in um, or in mm from 1000 um on.
fn length_text(um: f64) -> String {
    // A power of ten below one is not exact: as many digits as it has.
    let text = |value: f64| {
        let digits = (-value.log10().floor()).max(0.0) as usize;
        format!("{value:.digits$}")
    };
    if um >= 1000.0 { format!("{} mm", text(um / 1000.0)) } else { format!("{} um", text(um)) }
}

/// What the legend says of a class.
fn label(class: &Class) -> String {
    let name = if class.name.trim().is_empty() { format!("class {}", class.value) } else { class.name.clone() };
    match &class.code {
        Some(code) => format!("{name} ({code})"),
        None => name,
    }
}

const BLACK: [u8; 3] = [0; 3];

/// Pixels to a side that a picture may have with what is drawn below it: as many as a JPEG can have.
const MOST_SIDE: u64 = 65_535;

/// Pixels of the side of a dot of the letters, so that they are readable where the picture is shown as a whole.
fn dot(picture: Size) -> u64 {
    (picture.width.max(picture.height) / 512).clamp(1, 16)
}

/// A picture with a white strip under it that is drawn on.
struct Canvas {
    pixels: Pixels,
    /// The row where the strip begins.
    top: u64,
}

impl Canvas {
    fn under(picture: &Pixels, strip: Size) -> Result<Self> {
        let samples = rgb(picture)?;
        let top = picture.size().height;
        let size = Size::new(strip.width, top.saturating_add(strip.height));
        if size.width.max(size.height) > MOST_SIDE {
            return Err(Error::Usage(format!(
                "with what is to be drawn below it the picture would have {size} pixels, and {MOST_SIDE} to a side can be drawn: it would take a smaller picture, or fewer classes"
            )));
        }
        let mut pixels = Pixels::filled(size, SampleType::U8, &[255; 3]);
        pixels.blit(size.rect(), &Pixels::from_u8(picture.size(), 3, samples), picture.size().rect());
        Ok(Self { pixels, top })
    }

    /// Fills a rectangle of the strip.
    fn fill(&mut self, rect: Rect, color: [u8; 3]) {
        let size = self.pixels.size();
        let Some(inside) = Rect { y: rect.y + self.top as i64, ..rect }.intersect(size.rect()) else { return };
        let Samples::U8(samples) = self.pixels.samples_mut() else { unreachable!("made of 8 bits above") };
        let rows = samples.chunks_exact_mut(size.width as usize * 3).skip(inside.y as usize);
        for row in rows.take(inside.height as usize) {
            let pixels = &mut row[inside.x as usize * 3..inside.right() as usize * 3];
            pixels.as_chunks_mut::<3>().0.fill(color);
        }
    }

    fn text(&mut self, text: &str, x: u64, y: u64, dot: u64) {
        font::draw(text, |column, row| {
            let at = Rect::new((x + column * dot) as i64, (y + row * dot) as i64, dot, dot);
            self.fill(at, BLACK);
        });
    }

    fn finish(self) -> Pixels {
        self.pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_round_and_have_their_unit() {
        for (most, length, text) in [
            (1.0, 1.0, "1 um"),
            (1.99, 1.0, "1 um"),
            (2.0, 2.0, "2 um"),
            (99.0, 50.0, "50 um"),
            (999.0, 500.0, "500 um"),
            (1000.0, 1000.0, "1 mm"),
            (7300.0, 5000.0, "5 mm"),
            (20_000.0, 20_000.0, "20 mm"),
            (0.7, 0.5, "0.5 um"),
            (0.03, 0.02, "0.02 um"),
        ] {
            let found = round_length(most);
            assert!((found / length - 1.0).abs() < 1e-12, "{most}: {found}");
            assert_eq!(length_text(found), text);
        }
    }

    #[test]
    fn the_bar_is_as_long_as_it_says() {
        let picture = Pixels::filled(Size::new(800, 300), SampleType::U8, &[200, 100, 50]);
        let with = with_scale_bar(&picture, 0.5).unwrap();
        // A quarter of the width is 100 um.
        let row = (300 + 4 + 3) * 800 * 3;
        let black =
            with.as_u8().unwrap()[row..row + 800 * 3].chunks_exact(3).take(206).filter(|p| *p == [0; 3]).count();
        assert_eq!((with.size(), black), (Size::new(800, 316), 200));
        assert_eq!(with.as_u8().unwrap()[..300 * 800 * 3], picture.as_u8().unwrap()[..], "nothing is hidden");
        for mpp in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-320, 1e-7, 1e7, f64::MAX] {
            assert!(matches!(with_scale_bar(&picture, mpp), Err(Error::Usage(_))), "{mpp:?}");
        }
        for mpp in [1e-6, 1e6] {
            assert_eq!(with_scale_bar(&picture, mpp).unwrap().size(), Size::new(800, 316), "{mpp:?}");
        }
    }

    #[test]
    fn a_legend_names_every_class_in_its_color() {
        let mut classes: Vec<Class> =
            (0..9).map(|value| Class::with_default_color(value, format!("class no. {value}"))).collect();
        classes[3].code = Some("SCT 108369006".into());
        let picture = Pixels::filled(Size::new(300, 200), SampleType::U8, &[90]);
        let with = with_legend(&picture, &classes).unwrap();
        assert_eq!(with.size().width, 300);
        assert!(with.size().height > 212, "several lines");
        let pixels = with.as_u8().unwrap();
        assert!(pixels[..300 * 200 * 3].iter().all(|&v| v == 90), "nothing is hidden");
        let below = &pixels[300 * 200 * 3..];
        for class in &classes[1..] {
            let swatch = below.chunks_exact(3).filter(|p| *p == class.color).count();
            assert!(swatch >= 36, "{}: {swatch} pixels", class.name);
        }
        let narrow = Pixels::filled(Size::new(5, 5), SampleType::U8, &[90]);
        assert!(with_legend(&narrow, &classes).unwrap().size().width > 60, "as wide as the widest entry");
        assert!(matches!(with_legend(&picture, &classes[..1]), Err(Error::Usage(_))));
    }

    #[test]
    fn a_legend_is_no_larger_than_a_picture_can_be() {
        let picture = Pixels::filled(Size::new(64, 48), SampleType::U8, &[90]);
        let long = [Class::with_default_color(1, "W".repeat(2_000_000))];
        // A gap, the swatch, a gap, 20 letters, a gap.
        assert_eq!(with_legend(&picture, &long).unwrap().size(), Size::new(4 + 8 + 4 + 120 - 1 + 4, 48 + 16));
        let wide = Pixels::filled(Size::new(400, 48), SampleType::U8, &[90]);
        assert_eq!(with_legend(&wide, &long).unwrap().size(), Size::new(400, 48 + 16), "as much as fits");
        let many: Vec<Class> = (1..=6000).map(|value| Class::with_default_color(value, "a name of twenty")).collect();
        let error = with_legend(&picture, &many).unwrap_err();
        assert!(matches!(&error, Error::Usage(why) if why.contains("65535")), "{error}");
    }
}

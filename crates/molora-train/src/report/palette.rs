//! Colours of curves, marks and experts.
//!
//! They stand in the SVG as plain hexadecimal values, so that it is right on its own; the style sheet
//! of the page replaces exactly these values, and breaks the curves of the last four colours into
//! dashes, so that they differ by more than hue.

use plotters::style::RGBColor;

/// A colour and the class of the style sheet that shows what it means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ink {
    pub(super) color: RGBColor,
    pub(super) class: &'static str,
    /// Width of its curves.
    pub(super) width: u32,
}

const fn ink(color: RGBColor, class: &'static str, width: u32) -> Ink {
    Ink {
        color,
        class,
        width,
    }
}

/// The measured values themselves, behind their smoothed curve.
pub(super) const RAW: Ink = ink(RGBColor(0xA9, 0xC7, 0xF5), "raw", 1);
/// The smoothed curve.
pub(super) const SMOOTH: Ink = ink(RGBColor(0x1F, 0x6F, 0xEB), "smooth", 2);
/// A second smoothed curve in the same chart.
pub(super) const SECOND: Ink = ink(RGBColor(0xD9, 0x73, 0x0D), "second", 2);

/// Number of colours that stand for tasks, recipes and experts.
pub(super) const COLORS: usize = 8;

/// After the palette of Okabe and Ito, darker where white paper needs it.
const PALETTE: [Ink; COLORS] = [
    ink(RGBColor(0x00, 0x72, 0xB2), "k0", 2),
    ink(RGBColor(0xD5, 0x5E, 0x00), "k1", 2),
    ink(RGBColor(0x00, 0x9E, 0x73), "k2", 2),
    ink(RGBColor(0xC0, 0x5A, 0x9A), "k3", 2),
    ink(RGBColor(0x33, 0x9A, 0xDB), "k4", 2),
    ink(RGBColor(0xC9, 0x8A, 0x00), "k5", 2),
    ink(RGBColor(0x88, 0x22, 0x55), "k6", 2),
    ink(RGBColor(0x66, 0x66, 0x66), "k7", 2),
];

/// The colour of the number-th task, recipe or expert; they come again after [`COLORS`].
pub(super) fn color(number: usize) -> Ink {
    PALETTE[number % COLORS]
}

/// A colour as it stands in SVG.
pub(super) fn hexadecimal(color: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page in the dark has a colour of its own for each.
    #[test]
    fn the_style_sheet_knows_every_color() {
        let style = include_str!("style.css");
        for ink in PALETTE.iter().chain([&RAW, &SMOOTH, &SECOND]) {
            let stroke = format!("svg [stroke=\"{}\"]", hexadecimal(ink.color));
            assert_eq!(style.matches(&stroke).count(), 1, "{stroke}");
            assert!(style.contains(&format!(".{}", ink.class)), "{}", ink.class);
        }
        for ink in PALETTE {
            let fill = format!("svg [fill=\"{}\"]", hexadecimal(ink.color));
            assert!(style.contains(&fill), "{fill}");
        }
    }
}

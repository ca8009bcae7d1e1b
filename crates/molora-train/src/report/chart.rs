//! Line charts as inline SVG.
//!
//! Their colours stand in `palette.rs`. What they mean stands beside the chart, in HTML: text that is
//! shrunk with a picture cannot be read on a small screen.

use minijinja::{Value, context};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::palette::{Ink, RAW, SMOOTH};
use super::series::{Point, Series};
use super::template::safe;

/// Text and axes.
const INK: RGBColor = RGBColor(0x57, 0x60, 0x6A);
/// Grid lines.
const GRID: RGBColor = RGBColor(0xE1, 0xE5, 0xEA);

/// plotters places at whole pixels: drawing larger than shown keeps curves smooth.
const SCALE: u32 = 3;

/// A curve of a chart.
#[derive(Debug)]
pub(super) struct Curve {
    /// What it is, for the legend.
    pub(super) label: String,
    pub(super) points: Vec<Point>,
    pub(super) ink: Ink,
}

impl Curve {
    /// The values as they are.
    pub(super) fn raw(label: &str, series: &Series, ink: Ink) -> Self {
        let (label, points) = (label.to_owned(), series.raw());
        Self { label, points, ink }
    }

    /// The smoothed values.
    pub(super) fn smoothed(label: &str, series: &Series, ink: Ink) -> Self {
        let (label, points) = (label.to_owned(), series.smoothed());
        Self { label, points, ink }
    }
}

/// Size of a chart and the numbers of its ticks.
#[derive(Clone, Copy)]
struct Shape<'a> {
    size: (u32, u32),
    /// Names its axes, where there is room for that.
    y_label: Option<&'a str>,
    ticks: (usize, usize),
}

/// A chart over the whole width: drawn for wide and for narrow windows, with a legend where there are
/// several curves.
pub(super) fn large_chart(y_label: &str, curves: &[Curve]) -> Value {
    let shape = |size, ticks| Shape {
        size,
        y_label: Some(y_label),
        ticks,
    };
    let mut keys: Vec<[String; 2]> = Vec::new();
    for curve in curves {
        let key = [curve.ink.class.to_owned(), curve.label.clone()];
        // Of the runs of one recipe there is one key.
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    context! {
        wide => safe(&draw(shape((880, 300), (9, 6)), curves)),
        slim => safe(&draw(shape((440, 270), (5, 6)), curves)),
        keys => if keys.len() > 1 { keys } else { Vec::new() },
    }
}

const SMALL: Shape<'static> = Shape {
    size: (280, 170),
    y_label: None,
    ticks: (4, 4),
};

/// One small chart: each value, thin, and the smoothed curve.
pub(super) fn small_chart(series: &Series) -> Value {
    let curves = [
        Curve::raw("", series, RAW),
        Curve::smoothed("", series, SMOOTH),
    ];
    context! { name => &series.name, svg => safe(&draw(SMALL, &curves)) }
}

/// One small chart of scores: each is of a whole split, so there is nothing to smooth.
pub(super) fn small_validation_chart(series: &Series) -> Value {
    let svg = draw(SMALL, &[Curve::raw("", series, SMOOTH)]);
    context! { name => &series.name, svg => safe(&svg) }
}

fn draw(shape: Shape<'_>, curves: &[Curve]) -> String {
    let mut svg = String::new();
    {
        let (width, height) = shape.size;
        let area = SVGBackend::with_string(&mut svg, (width * SCALE, height * SCALE));
        draw_on(&area.into_drawing_area(), shape, curves)
            .expect("drawing into a string has nothing that can fail");
    }
    svg
}

fn draw_on(
    area: &DrawingArea<SVGBackend, Shift>,
    shape: Shape<'_>,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let font = ("sans-serif", 14 * SCALE).into_font().color(&INK);
    let (x_range, y_range) = ranges(curves);
    let is_large = shape.y_label.is_some();
    let mut chart = ChartBuilder::on(area)
        .margin(6 * SCALE)
        .margin_right(14 * SCALE)
        .x_label_area_size(if is_large { 38 } else { 22 } * SCALE)
        .y_label_area_size(if is_large { 62 } else { 44 } * SCALE)
        .build_cartesian_2d(x_range, y_range)?;
    let mut mesh = chart.configure_mesh();
    mesh.label_style(font).axis_style(INK.stroke_width(SCALE));
    mesh.bold_line_style(GRID.stroke_width(SCALE))
        .light_line_style(TRANSPARENT);
    mesh.x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| tick(*value));
    mesh.set_all_tick_mark_size(4 * SCALE);
    mesh.x_labels(shape.ticks.0).y_labels(shape.ticks.1);
    if let Some(label) = shape.y_label {
        mesh.x_desc("step").y_desc(label);
    }
    mesh.draw()?;
    for curve in curves {
        let style = curve.ink.color.stroke_width(curve.ink.width * SCALE);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
    }
    area.present()?;
    Ok(())
}

type Range = std::ops::Range<f64>;

/// Ranges that hold all points and are never empty.
fn ranges(curves: &[Curve]) -> (Range, Range) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let (first, last) = bounds(points().map(|point| point.0));
    let (low, high) = bounds(points().map(|point| point.1));
    // From zero where that shows the curve well, which it does not for 1.00 to 1.02.
    let low = if (0.0..0.6 * high).contains(&low) {
        0.0
    } else {
        low
    };
    let margin = match (0.05 * (high - low)).max(1e-3 * high.abs()) {
        // Nothing but zeros.
        0.0 => 1.0,
        margin => margin,
    };
    let bottom = if low == 0.0 { 0.0 } else { low - margin };
    (first..last.max(first + 1.0), bottom..high + margin)
}

/// Least and greatest value; `(0, 1)` without values.
pub(super) fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = |ends: Option<(f64, f64)>, value: f64| match ends {
        Some((low, high)) => Some((low.min(value), high.max(value))),
        None => Some((value, value)),
    };
    values.fold(None, ends).unwrap_or((0.0, 1.0))
}

/// A tick's number in at most three digits: `0.25`, `12`, `5e-4`.
fn tick(value: f64) -> String {
    let text = match value.abs() {
        0.0 => return "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => return format!("{value:.0e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.3}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::palette::color;

    fn curve(values: &[f64]) -> Curve {
        let points = values.iter().enumerate();
        Curve {
            label: String::new(),
            points: points.map(|(step, value)| (step as f64, *value)).collect(),
            ink: color(0),
        }
    }

    #[test]
    fn ticks_are_short() {
        let cases = [
            (0.0, "0"),
            (0.25, "0.25"),
            (-1.5, "-1.5"),
            (2.0, "2"),
            (1200.0, "1200"),
        ];
        for (value, text) in cases {
            assert_eq!(tick(value), text);
        }
        assert_eq!(
            (tick(5e-4), tick(3e6)),
            ("5e-4".to_owned(), "3e6".to_owned())
        );
        assert_eq!(tick(0.1 + 0.2), "0.3");
    }

    #[test]
    fn ranges_are_never_empty() {
        for values in [
            vec![],
            vec![0.0],
            vec![3.0; 2],
            vec![-2.0, -1.0],
            vec![1.0, 1.02],
        ] {
            let (x, y) = ranges(&[curve(&values)]);
            assert!(
                x.end > x.start && y.end > y.start,
                "{values:?}: {x:?} {y:?}"
            );
            assert!(
                values.iter().all(|value| (y.start..=y.end).contains(value)),
                "{y:?}"
            );
        }
    }

    #[test]
    fn every_number_of_points_can_be_drawn() {
        for count in [0, 1, 2, 40] {
            let svg = draw(SMALL, &[curve(&vec![1.0; count])]);
            assert!(
                svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
                "{count} points"
            );
        }
    }

    #[test]
    fn a_legend_names_each_meaning_once() {
        let keys = |inks: &[usize]| {
            let curves: Vec<Curve> = inks
                .iter()
                .map(|&number| Curve {
                    label: format!("recipe {number}"),
                    ink: color(number),
                    ..curve(&[1.0, 2.0])
                })
                .collect();
            large_chart("loss", &curves).get_attr("keys").unwrap().len()
        };
        assert_eq!(keys(&[0]), Some(0));
        assert_eq!(keys(&[0, 0]), Some(0));
        assert_eq!(keys(&[0, 1, 1]), Some(2));
    }
}

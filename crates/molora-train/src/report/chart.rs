//! Line charts as inline SVG.
//!
//! Colours stand in the SVG as plain hexadecimal values, so that it is right on its own; the style
//! sheet of the page replaces exactly these values where the reader prefers a dark page.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::schema::{StepRecord, ValidationRecord};

/// Text and axes.
const INK: RGBColor = RGBColor(0x57, 0x60, 0x6A);
/// Grid lines.
const GRID: RGBColor = RGBColor(0xE1, 0xE5, 0xEA);
/// The measured values themselves, behind their smoothed curve.
const RAW: RGBColor = RGBColor(0xA9, 0xC7, 0xF5);
/// The smoothed curve.
const SMOOTH: RGBColor = RGBColor(0x1F, 0x6F, 0xEB);
/// A second smoothed curve in the same chart.
const SECOND: RGBColor = RGBColor(0xD9, 0x73, 0x0D);

/// plotters places at whole pixels: drawing larger than shown keeps curves smooth.
const SCALE: u32 = 3;
/// Curves with more points are thinned to block means; a page shows no more anyway.
const MAX_POINTS: usize = 800;

/// A named series over steps.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// The steps with which a stage begins, or the training of another expert.
    pub(super) starts: Vec<f64>,
}

impl Series {
    /// Collects `value` of every step that has one.
    pub(super) fn of(
        name: &str,
        steps: &[StepRecord],
        value: impl Fn(&StepRecord) -> Option<f64>,
    ) -> Self {
        let points = steps
            .iter()
            .filter_map(|step| Some((step.step as f64, value(step)?)));
        let part = |step: &StepRecord| (step.stage.clone(), step.expert.clone());
        let pairs = steps
            .windows(2)
            .filter(|pair| part(&pair[0]) != part(&pair[1]));
        Self {
            starts: pairs.map(|pair| pair[1].step as f64).collect(),
            ..Self::new(name, points)
        }
    }

    /// Collects `value` of every score of the validation split that has one.
    pub(super) fn scored(
        name: &str,
        records: &[ValidationRecord],
        value: impl Fn(&ValidationRecord) -> Option<f64>,
    ) -> Self {
        let points = records.iter();
        Self::new(
            name,
            points.filter_map(|record| Some((record.step as f64, value(record)?))),
        )
    }

    fn new(name: &str, points: impl Iterator<Item = (f64, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            points: points.filter(|(_, value)| value.is_finite()).collect(),
            starts: Vec::new(),
        }
    }
}

struct Curve<'a> {
    label: &'a str,
    points: Vec<(f64, f64)>,
    color: RGBColor,
    width: u32,
}

/// The total loss of each step, smoothed, and the smoothed task loss where it differs.
pub(super) fn loss_chart(steps: &[StepRecord]) -> String {
    let total = Series::of("total", steps, |step| Some(step.loss));
    let task = Series::of("task", steps, |step| Some(step.task_loss));
    let mut curves = vec![raw("total, each step", &total)];
    if total.points != task.points {
        curves.push(smoothed("tasks alone, smoothed", &task, SECOND));
    }
    curves.push(smoothed("total, smoothed", &total, SMOOTH));
    draw((880, 300), Some("loss (nats)"), &curves)
}

/// The mean score of each state that was scored, in per cent.
pub(super) fn validation_chart(mean: &Series) -> String {
    draw((880, 240), Some("mean score (%)"), &[plain(mean)])
}

/// One small chart of scores: each is of a whole split, so there is nothing to smooth.
pub(super) fn small_validation_chart(series: &Series) -> String {
    draw((280, 170), None, &[plain(series)])
}

fn plain(series: &Series) -> Curve<'_> {
    Curve {
        label: &series.name,
        points: thin(&series.points),
        color: SMOOTH,
        width: 2,
    }
}

/// One small chart: each value, thin, and the smoothed curve.
pub(super) fn small_chart(series: &Series) -> String {
    draw(
        (280, 170),
        None,
        &[raw("", series), smoothed("", series, SMOOTH)],
    )
}

fn raw<'a>(label: &'a str, series: &Series) -> Curve<'a> {
    Curve {
        label,
        points: thin(&series.points),
        color: RAW,
        width: 1,
    }
}

fn smoothed<'a>(label: &'a str, series: &Series, color: RGBColor) -> Curve<'a> {
    Curve {
        label,
        points: thin(&smooth(series)),
        color,
        width: 2,
    }
}

/// Exponential moving average over about a twentieth of the points, without bias to the start, and
/// anew where another model or expert begins.
fn smooth(series: &Series) -> Vec<(f64, f64)> {
    let points = &series.points;
    let keep = 1.0 - 2.0 / (points.len() as f64 / 20.0 + 2.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut starts = series.starts.iter().peekable();
    let average = |&(step, value): &(f64, f64)| {
        while starts.next_if(|start| **start <= step).is_some() {
            (sum, weight) = (0.0, 0.0);
        }
        sum = keep * sum + value;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    points.iter().map(average).collect()
}

/// Means of equal blocks, so that at most [`MAX_POINTS`] are left.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let block = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let sum = chunk
            .iter()
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / chunk.len() as f64, sum.1 / chunk.len() as f64)
    };
    points.chunks(block).map(mean).collect()
}

/// Draws curves over steps; `y_label` and a legend only where there is room for them.
fn draw(size: (u32, u32), y_label: Option<&str>, curves: &[Curve]) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.0 * SCALE, size.1 * SCALE));
        draw_on(&area.into_drawing_area(), y_label, curves)
            .expect("drawing into a string has nothing that can fail");
    }
    svg
}

fn draw_on(
    area: &DrawingArea<SVGBackend, Shift>,
    y_label: Option<&str>,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let font = ("sans-serif", 14 * SCALE).into_font().color(&INK);
    let (x_range, y_range) = ranges(curves);
    let mut chart = ChartBuilder::on(area)
        .margin(6 * SCALE)
        .margin_right(14 * SCALE)
        .x_label_area_size(if y_label.is_some() { 38 } else { 22 } * SCALE)
        .y_label_area_size(if y_label.is_some() { 62 } else { 44 } * SCALE)
        .build_cartesian_2d(x_range, y_range)?;
    let mut mesh = chart.configure_mesh();
    mesh.label_style(font.clone())
        .axis_style(INK.stroke_width(SCALE));
    mesh.bold_line_style(GRID.stroke_width(SCALE))
        .light_line_style(TRANSPARENT);
    mesh.x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| tick(*value));
    mesh.set_all_tick_mark_size(4 * SCALE);
    match y_label {
        Some(label) => mesh.x_desc("step").y_desc(label).x_labels(9).y_labels(6),
        None => mesh.x_labels(4).y_labels(4),
    };
    mesh.draw()?;
    for curve in curves {
        let style = curve.color.stroke_width(curve.width * SCALE);
        let drawn = chart.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
        if y_label.is_some() {
            let mark = move |(x, y)| PathElement::new([(x, y), (x + 20 * SCALE as i32, y)], style);
            drawn.label(curve.label).legend(mark);
        }
    }
    // Of one curve the axis says what it is.
    if y_label.is_some() && curves.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .legend_area_size(28 * SCALE)
            .label_font(font)
            .draw()?;
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
    let margin = (0.05 * (high - low)).max(1e-3 * high.abs()).max(1e-12);
    let bottom = if low == 0.0 { 0.0 } else { low - margin };
    (first..last.max(first + 1.0), bottom..high + margin)
}

/// Least and greatest value; `(0, 1)` without values.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
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
    use crate::report::sample;

    fn line(count: usize, value: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
        (0..count)
            .map(|index| (index as f64, value(index)))
            .collect()
    }

    fn series(points: Vec<(f64, f64)>, starts: &[f64]) -> Series {
        Series {
            name: String::new(),
            points,
            starts: starts.to_vec(),
        }
    }

    #[test]
    fn smoothing_keeps_a_constant_and_damps_a_zigzag() {
        let constant = smooth(&series(line(50, |_| 2.5), &[]));
        let near =
            |value: f64, bound: f64| move |point: &(f64, f64)| (point.1 - value).abs() < bound;
        assert!(constant.iter().all(near(2.5, 1e-12)));
        let zigzag = smooth(&series(line(400, |index| (index % 2) as f64), &[]));
        assert!(zigzag[300..].iter().all(near(0.5, 0.06)));
    }

    #[test]
    fn smoothing_begins_anew_with_another_expert() {
        let levels = line(60, |index| (index / 20) as f64);
        let smoothed = smooth(&series(levels.clone(), &[20.0, 40.0]));
        assert!(
            smoothed
                .iter()
                .zip(&levels)
                .all(|(found, level)| (found.1 - level.1).abs() < 1e-12)
        );
    }

    #[test]
    fn thinning_keeps_the_mean() {
        let thinned = thin(&line(8000, |index| index as f64));
        assert_eq!((thinned.len(), thinned[0]), (800, (4.5, 4.5)));
        assert_eq!(thin(&line(800, |index| index as f64)).len(), 800);
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
            let points = line(values.len(), |index| values[index]);
            let (x, y) = ranges(&[Curve {
                label: "",
                points,
                color: RAW,
                width: 1,
            }]);
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
    fn every_number_of_steps_can_be_drawn() {
        for count in [0, 1, 2, 40] {
            let svg = loss_chart(&sample::steps(count));
            assert!(
                svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
                "{count} steps"
            );
        }
    }

    #[test]
    fn the_task_loss_is_drawn_only_where_it_differs() {
        let mut steps = sample::steps(30);
        assert!(loss_chart(&steps).contains("tasks alone"));
        steps.iter_mut().for_each(|step| step.loss = step.task_loss);
        assert!(!loss_chart(&steps).contains("tasks alone"));
    }
}

//! Scores against parameters, and which recipes are Pareto-optimal.

use minijinja::{Value, context};

use super::chart::bounds;
use super::format::{percent, thousands};
use super::palette::{color, hexadecimal};

/// A recipe as a point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spot {
    pub(super) name: String,
    /// Trainable parameters beside the heads.
    pub(super) parameters: f64,
    /// Mean score, a fraction.
    pub(super) score: f64,
}

/// Distance between the names of two points, in pixels.
const LINE: f64 = 16.0;

/// The chart for wide and for narrow windows, and its numbers as rows: name, parameters, score, and
/// whether no other recipe is better with as few parameters, or as good with fewer.
pub(super) fn scatter_values(spots: &[Spot]) -> Value {
    let row = |(number, spot): (usize, &Spot)| {
        [
            spot.name.clone(),
            thousands(spot.parameters.round() as usize),
            percent(spot.score),
            if is_best(spots, number) { "yes" } else { "" }.to_owned(),
        ]
    };
    context! {
        charts => [("wide", chart(spots, (880.0, 340.0))), ("slim", chart(spots, (440.0, 340.0)))],
        rows => spots.iter().enumerate().map(row).collect::<Vec<_>>(),
    }
}

/// Whether a point is on the Pareto front.
fn is_best(spots: &[Spot], number: usize) -> bool {
    let own = &spots[number];
    !spots.iter().any(|other| {
        let is_no_worse = other.score >= own.score && other.parameters <= own.parameters;
        is_no_worse && (other.score > own.score || other.parameters < own.parameters)
    })
}

/// Where a point is in a picture, and its number.
type Place = (f64, f64, usize);

/// Where values stand in a picture.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

fn chart(spots: &[Spot], (width, height): (f64, f64)) -> Value {
    let logarithm = |spot: &Spot| spot.parameters.max(1.0).log10();
    let (low, high) = bounds(spots.iter().map(logarithm));
    let x = Scale {
        low: low - 0.2,
        high: high + 0.2,
        from: 62.0,
        to: width - 16.0,
    };
    let (low, high) = bounds(spots.iter().map(|spot| 100.0 * spot.score));
    let margin = (0.15 * (high - low)).max(0.5);
    let y = Scale {
        low: low - margin,
        high: high + margin,
        from: height - 46.0,
        to: 12.0,
    };
    let mut places: Vec<Place> = spots
        .iter()
        .enumerate()
        .map(|(number, spot)| {
            (
                x.place(logarithm(spot)),
                y.place(100.0 * spot.score),
                number,
            )
        })
        .collect();
    places.sort_by(|a, b| a.1.total_cmp(&b.1));
    let heights: Vec<f64> = places.iter().map(|place| place.1).collect();
    let names = apart(&heights, y.from - 4.0);
    let point = |(place, name_y): (&Place, &f64)| {
        let name = &spots[place.2].name;
        let is_right = is_right(place, *name_y, name, &places, &x);
        context! {
            x => pixel(place.0),
            y => pixel(place.1),
            name_x => pixel(place.0 + if is_right { 14.0 } else { -14.0 }),
            name_y => pixel(name_y + 5.0),
            line_y => pixel(*name_y),
            anchor => if is_right { "start" } else { "end" },
            name => name,
            color => hexadecimal(color(place.2).color),
            is_best => is_best(spots, place.2),
        }
    };
    let points = places.iter().zip(&names).map(point);
    let mut front: Vec<&Place> = places
        .iter()
        .filter(|place| is_best(spots, place.2))
        .collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    let front = front
        .iter()
        .map(|place| format!("{:.1},{:.1}", place.0, place.1));
    context! {
        width => width, height => height,
        left => x.from, right => x.to, bottom => y.from, top => y.to,
        columns => columns(&x), lines => lines(&y), front => front.collect::<Vec<_>>().join(" "),
        points => points.collect::<Vec<_>>(),
    }
}

/// Whether a name stands to the right of its point: where there is room for it and no other point, or
/// no more of both to the left.
fn is_right(own: &Place, name_y: f64, name: &str, places: &[Place], x: &Scale) -> bool {
    // So long is a name, roughly.
    let length = 14.0 + 8.0 * name.chars().count() as f64;
    let is_free = |from: f64, to: f64| {
        let is_there = |place: &Place| {
            place.2 != own.2 && (from..to).contains(&place.0) && (place.1 - name_y).abs() < LINE
        };
        !places.iter().any(is_there)
    };
    let has_right = own.0 + length < x.to && is_free(own.0, own.0 + length);
    let has_left = own.0 - length > x.from && is_free(own.0 - length, own.0);
    has_right || !has_left
}

fn pixel(place: f64) -> String {
    format!("{place:.1}")
}

/// Sorted heights moved apart, so that names do not cover each other, and none below the bottom.
fn apart(heights: &[f64], bottom: f64) -> Vec<f64> {
    let mut moved: Vec<f64> = Vec::new();
    for &height in heights {
        let least = moved.last().map_or(f64::NEG_INFINITY, |last| last + LINE);
        moved.push(height.max(least));
    }
    let mut most = bottom;
    for height in moved.iter_mut().rev() {
        *height = height.min(most);
        most = *height - LINE;
    }
    moved
}

/// Places and names of round numbers of parameters.
fn columns(x: &Scale) -> Vec<[String; 2]> {
    let decades = x.low.floor() as i32..=x.high.ceil() as i32;
    let all = |steps: &[f64]| -> Vec<f64> {
        let values = decades.clone().flat_map(|decade| {
            let steps = steps.iter().map(move |step| step * 10f64.powi(decade));
            steps.collect::<Vec<_>>()
        });
        let is_inside = |value: &f64| (x.low..=x.high).contains(&value.log10());
        values.filter(is_inside).collect()
    };
    let some = match all(&[1.0, 2.0, 5.0]) {
        many if many.len() > 6 => all(&[1.0]),
        few if few.len() < 2 => all(&[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]),
        found => found,
    };
    let column = |value: f64| [pixel(x.place(value.log10())), short(value)];
    some.into_iter().map(column).collect()
}

/// `200k` for 200,000.
fn short(value: f64) -> String {
    let text = |value: f64, unit: &str| format!("{}{unit}", (value * 10.0).round() / 10.0);
    match value {
        value if value >= 1e9 => text(value / 1e9, "G"),
        value if value >= 1e6 => text(value / 1e6, "M"),
        value if value >= 1e3 => text(value / 1e3, "k"),
        value => text(value, ""),
    }
}

/// Places and names of round scores.
fn lines(y: &Scale) -> Vec<[String; 2]> {
    let rough = (y.high - y.low) / 5.0;
    let decade = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let step = steps
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (y.low / step).ceil() as i64;
    let last = (y.high / step).floor() as i64;
    let line = |number: i64| {
        let value = number as f64 * step;
        [
            pixel(y.place(value)),
            format!("{}", (value * 100.0).round() / 100.0),
        ]
    };
    (first..=last).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(parameters: f64, score: f64) -> Spot {
        let name = format!("{parameters}");
        Spot {
            name,
            parameters,
            score,
        }
    }

    #[test]
    fn the_front_has_what_nobody_beats_at_both() {
        let spots = [
            spot(100.0, 0.5),
            spot(200.0, 0.7),
            spot(300.0, 0.6),
            spot(200.0, 0.6),
            spot(400.0, 0.7),
            spot(100.0, 0.5),
        ];
        let best: Vec<usize> = (0..spots.len()).filter(|&n| is_best(&spots, n)).collect();
        // Two that are the same do not beat each other.
        assert_eq!(best, [0, 1, 5]);
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let moved = apart(&[10.0, 11.0, 12.0, 80.0, 81.0], 90.0);
        assert_eq!(moved, [10.0, 26.0, 42.0, 74.0, 90.0]);
    }

    #[test]
    fn a_name_does_not_cover_the_next_point() {
        let anchors = |spots: &[Spot]| {
            let points = chart(spots, (880.0, 340.0)).get_attr("points").unwrap();
            let anchor = |point: Value| point.get_attr("anchor").unwrap().to_string();
            points.try_iter().unwrap().map(anchor).collect::<Vec<_>>()
        };
        let near = [spot(138_240.0, 0.9), spot(147_456.0, 0.9)];
        assert_eq!(anchors(&near), ["end", "start"]);
        assert_eq!(
            anchors(&[spot(10.0, 0.9), spot(1e6, 0.9)]),
            ["start", "end"]
        );
    }

    #[test]
    fn any_points_can_be_drawn() {
        for spots in [
            vec![],
            vec![spot(0.0, 0.0)],
            vec![spot(147_456.0, 0.9), spot(147_456.0, 0.9)],
            vec![spot(10.0, -0.2), spot(1e9, 1.0)],
        ] {
            let values = chart(&spots, (440.0, 340.0));
            let text = values.to_string();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            let columns = values.get_attr("columns").unwrap().len().unwrap();
            assert!((1..=12).contains(&columns), "{columns} columns");
        }
        assert_eq!(["1k", "1.5M", "200"], [1e3, 1.5e6, 200.0].map(short));
    }
}

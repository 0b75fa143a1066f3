//! `bessemer eval --pareto`: what each precision costs in quality, as a picture.

use crate::exit::{Code, Failure};
use crate::output::out;
use crate::progress::{Meter, Unit};
use crate::{interrupt, json};
use bessemer_compiler::calibrate::Corpus;
use bessemer_compiler::{CompileOptions, Method, RunOptions, compile};
use bessemer_passes::PrecisionPolicy;
use plotters::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is drawn if nobody names precisions: each width once.
const PRECISIONS: &str = "int8,u6:s8x32*f16x0-32,u5:s8x32*f16x0-16,u4:s8x32*f16x0-8,u3:s8x32*f16x0-4";
/// Windows of the text, at most.
const WINDOWS: usize = 32;
/// The first line of the points' file.
const HEADER: &str = "series,name,bits_per_weight,mean_kl";

/// Size against divergence, drawn
#[derive(clap::Args, Debug)]
pub struct ParetoArgs {
    /// Compile the source in several precisions and draw their bits a weight against their mean KL divergence on the text (weights alone,
    /// as a report states it). Writes a picture, and the points beside it as CSV
    #[arg(long, value_name = "OUT.svg", conflicts_with_all = ["base", "kv", "max_tokens", "logits"])]
    pareto: Option<PathBuf>,

    /// The precisions, as `compile --precision` takes them
    #[arg(long, value_name = "P,...", value_delimiter = ',', requires = "pareto", default_value = PRECISIONS)]
    precisions: Vec<PrecisionPolicy>,

    /// How weights are rounded (may be repeated): rtn, awq, gptq or awq+gptq
    #[arg(long, value_name = "M", requires = "pareto", default_value = "rtn")]
    method: Vec<Method>,

    /// Text to calibrate on, for methods that do
    #[arg(long, value_name = "FILE|DIR", requires = "pareto")]
    calib: Option<PathBuf>,

    /// Points of others, drawn beside: a CSV with the columns series, name, bits_per_weight and mean_kl
    #[arg(long, value_name = "FILE.csv", requires = "pareto")]
    peers: Vec<PathBuf>,
}

/// One engine, of ours or of a peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Point {
    /// Points of one series share a colour.
    series: String,
    name: String,
    bits_per_weight: f64,
    mean_kl: f64,
}

impl ParetoArgs {
    /// Where to draw, if that was asked for.
    pub fn out(&self) -> Option<&Path> {
        self.pareto.as_deref()
    }

    /// Compiles, measures and draws.
    pub fn run(
        &self,
        out: &Path,
        source: &Path,
        text: &Path,
        window: usize,
        as_json: bool,
    ) -> Result<(), Failure> {
        if out.extension().is_none_or(|e| e != "svg") {
            return Err(Failure::usage(format!("{}: the picture is an SVG; name it *.svg", out.display())));
        }
        // What can be wrong with files shows before hours of compiling.
        let peers = self.peers.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
        let measure = Corpus::read(text, WINDOWS, window)?;
        let calibration = match &self.calib {
            Some(path) => Corpus { text: Corpus::read(path, 0, 0)?.text, ..Corpus::calibration() },
            None => Corpus::calibration(),
        };
        let folder = tempfile::tempdir()?;
        let scratch = Some(folder.path().join("scratch"));
        let run = RunOptions { scratch, ..RunOptions::default() };
        interrupt::handle();
        let mut points = Vec::new();
        for method in &self.method {
            for precision in &self.precisions {
                let options = CompileOptions {
                    precision: *precision,
                    method: *method,
                    calibration: calibration.clone(),
                    measure: Some(measure.clone()),
                    code: false,
                    ..CompileOptions::default()
                };
                let meter = Meter::new(Unit::Bytes);
                let made =
                    compile(source, &folder.path().join("model.engine"), &options, &run, None, &meter)?;
                drop(meter);
                let Some(quality) = made.quality else { continue };
                points.push(Point {
                    series: format!("bessemer {method}"),
                    name: precision.to_string(),
                    bits_per_weight: quality.bits_per_weight,
                    mean_kl: quality.mean_kl,
                });
            }
        }
        points.extend(peers.into_iter().flatten());
        let table = out.with_extension("csv");
        let failed = |path: &Path, why: String| {
            Failure::new(Code::Internal, format!("cannot write {}: {why}", path.display()))
        };
        std::fs::write(&table, csv(&points)).map_err(|e| failed(&table, e.to_string()))?;
        draw(out, &points).map_err(|e| failed(out, e.to_string()))?;
        if as_json {
            return json::print(&points);
        }
        for p in &points {
            out!("{} {}: {:.3} bits a weight, KL {:.3e}", p.series, p.name, p.bits_per_weight, p.mean_kl)?;
        }
        Ok(())
    }
}

fn csv(points: &[Point]) -> String {
    let line = |p: &Point| format!("{},{},{},{}\n", p.series, p.name, p.bits_per_weight, p.mean_kl);
    format!("{HEADER}\n{}", points.iter().map(line).collect::<String>())
}

/// Points from a file like the one that is written: names without commas, so no quotes.
fn read(path: &Path) -> Result<Vec<Point>, Failure> {
    let bad = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    parse(&text).map_err(bad)
}

fn parse(text: &str) -> Result<Vec<Point>, String> {
    let mut lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    if lines.next().is_none_or(|(_, first)| first != HEADER) {
        return Err(format!("the first line must be `{HEADER}`"));
    }
    let point = |(at, line): (usize, &str)| {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let &[series, name, bits, kl] = cells.as_slice() else {
            return Err(format!("line {} has {} cells, expected 4", at + 1, cells.len()));
        };
        let number = |cell: &str| {
            let number = cell.parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
            number.ok_or_else(|| format!("line {}: `{cell}` is no number from 0 on", at + 1))
        };
        let (bits_per_weight, mean_kl) = (number(bits)?, number(kl)?);
        Ok(Point { series: series.into(), name: name.into(), bits_per_weight, mean_kl })
    };
    lines.map(point).collect()
}

/// Draws bits against divergence, the latter as a logarithm, each series as a line.
fn draw(out: &Path, points: &[Point]) -> Result<(), Box<dyn std::error::Error>> {
    /// What a logarithm has no place for, drawn at the bottom.
    const LEAST: f64 = 1e-7;
    let at = |p: &Point| (p.bits_per_weight, p.mean_kl.max(LEAST));
    let range = |values: Vec<f64>| {
        values.iter().fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(*v), high.max(*v)))
    };
    let (left, right) = range(points.iter().map(|p| at(p).0).collect());
    let (low, high) = range(points.iter().map(|p| at(p).1).collect());
    let mut series: Vec<&str> = Vec::new();
    for p in points {
        if !series.contains(&p.series.as_str()) {
            series.push(&p.series);
        }
    }
    let area = SVGBackend::new(out, (960, 640)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .caption("Size against quality", ("sans-serif", 22))
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(left - 0.4..right + 0.8, (low / 2.0..high * 2.0).log_scale())?;
    let mesh = &mut chart.configure_mesh();
    mesh.x_desc("bits a weight")
        .y_desc("mean KL divergence")
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .draw()?;
    for (i, series) in series.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let mut of: Vec<&Point> = points.iter().filter(|p| p.series == *series).collect();
        of.sort_by(|a, b| a.bits_per_weight.total_cmp(&b.bits_per_weight));
        chart
            .draw_series(LineSeries::new(of.iter().map(|p| at(p)), colour.stroke_width(2)))?
            .label(*series)
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 8, y + 4)], colour.filled()));
        chart.draw_series(of.iter().map(|p| {
            EmptyElement::at(at(p))
                + Circle::new((0, 0), 4, colour.filled())
                + Text::new(p.name.clone(), (7, -12), ("sans-serif", 12))
        }))?;
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_come_back_from_their_file_and_what_is_none_is_refused() {
        let point = |series: &str, mean_kl| Point {
            series: series.into(),
            name: "u4:f16x32-8".into(),
            bits_per_weight: 4.5,
            mean_kl,
        };
        let points = [point("ours", 0.0), point("theirs", 0.125)];
        assert_eq!(parse(&csv(&points)).unwrap(), points);
        for (text, why) in [
            ("", "first line"),
            ("a,b,4,0.1", "first line"),
            (&format!("{HEADER}\na,b,4"), "3 cells"),
            (&format!("{HEADER}\na,b,x,0.1"), "line 2: `x`"),
            (&format!("{HEADER}\na,b,4,-1"), "`-1`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

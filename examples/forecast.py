"""Time series: carbon dioxide on Mauna Loa by month, and sunspots by year, forecast by a deep GRU.

The GRU reads the last years and says for each of the next points how far it will lie from the point one
season earlier, and how sure it is: the bands of the plot hold nine points of ten if that is honest. The
baseline (seasonal naive) says that everything will be as it was one season earlier.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gaussian_nll_loss

from . import program

BATCH = 64
NINE_OF_TEN = 1.645  # standard deviations to either side


@dataclass
class Series:
    name: str
    unit: str
    times: list[float]  # years
    values: Tensor  # [N]
    season: int  # points
    window: int  # points that the GRU sees
    ahead: int  # points to forecast
    test: int  # points at the end that training does not see

    def __post_init__(self):
        train = self.values[: -self.test]
        self.scale = (train[self.season :] - train[: -self.season]).std()

    def examples(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen before the points `ends`, [window, B, 2], and the targets [B, ahead]."""
        past = self.values[ends + torch.arange(-self.window, 0)[:, None]]
        season_before = self.values[ends + torch.arange(-self.window, 0)[:, None] - self.season]
        features = torch.stack([past - past[-1], past - season_before], 2) / self.scale
        future = ends[:, None] + torch.arange(self.ahead)
        return features, (self.values[future] - self.values[future - self.season]) / self.scale

    def ends(self, test: bool) -> Tensor:
        first, boundary = self.window + self.season, len(self.values) - self.test
        if test:
            return torch.arange(boundary, len(self.values) - self.ahead + 1)
        return torch.arange(first, boundary - self.ahead + 1)


def load() -> list[Series]:
    try:
        from statsmodels.datasets import co2, sunspots
    except ImportError:
        raise SystemExit(
            "this example needs statsmodels: pip install 'seqkern[examples]'"
        ) from None
    monthly = co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
    times = [day.year + (day.month - 1) / 12 for day in monthly.index]
    values = torch.tensor(monthly.to_numpy(), dtype=torch.float32)
    spots = sunspots.load_pandas().data
    years = spots["YEAR"].tolist()
    counts = torch.tensor(spots["SUNACTIVITY"].to_numpy(), dtype=torch.float32)
    return [
        Series("carbon dioxide", "ppm", times, values, season=12, window=36, ahead=12, test=96),
        Series("sunspots", "sunspots", years, counts, season=11, window=33, ahead=2, test=70),
    ]


class Forecaster(nn.Module):
    def __init__(self, layers, ahead: int, size: int = 32):
        super().__init__()
        self.gru = layers.GRU(2, size, num_layers=2, dropout=0.3)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(size, 2 * ahead))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [T, B, 2] -> mean and variance, [B, ahead] each."""
        output, _ = self.gru(features)
        mean, spread = self.head(output[-1]).chunk(2, 1)
        return mean, nn.functional.softplus(spread) + 1e-3


@dataclass
class Forecast:
    """Of every point of the test years, made `ahead` points before."""

    values: Tensor  # [B, ahead]
    bands: Tensor  # [B, ahead]: to either side
    error: float  # root mean square
    naive: float
    inside: float  # share of points within the bands


@torch.no_grad()
def forecast(model: Forecaster, series: Series) -> Forecast:
    ends = series.ends(test=True)
    features, targets = series.examples(ends)
    mean, variance = model.eval()(features)
    season_before = series.values[ends[:, None] + torch.arange(series.ahead) - series.season]
    bands = NINE_OF_TEN * variance.sqrt()
    off = (mean - targets).abs()
    return Forecast(
        season_before + series.scale * mean,
        series.scale * bands,
        (series.scale * off.square().mean().sqrt()).item(),
        (series.scale * targets.square().mean().sqrt()).item(),
        (off <= bands).float().mean().item(),
    )


def draw(found: list[tuple[Series, Forecast]], options) -> None:
    """Forecasts made at the end of each stretch of `ahead` points, drawn one after the other."""
    figure = program.new_figure(9, 6.5)
    for place, (series, made) in enumerate(found):
        stretches = slice(None, None, series.ahead)
        values, bands = (t[stretches].flatten() for t in (made.values, made.bands))
        first = len(series.values) - series.test
        times = series.times[first : first + len(values)]
        shown = slice(first - series.test // 2, None)
        held = f"{made.inside:.0%} of all unseen points lie in their bands"
        title = f"{series.name.capitalize()}: {held}"
        axes = figure.add_subplot(2, 1, place + 1, xlabel="year", ylabel=series.unit, title=title)
        axes.plot(series.times[shown], series.values[shown], "k.-", lw=0.8, ms=3, label="measured")
        axes.plot(times, values, "C0", label=f"forecast, up to {series.ahead} points ahead")
        low, high = values - bands, values + bands
        axes.fill_between(
            times, low, high, color="C0", alpha=0.25, label="band for nine points of ten"
        )
        before = series.values[first - series.season : first - series.season + len(values)]
        axes.plot(times, before, "C1:", label="one season earlier")
        axes.legend(fontsize=8, loc="upper left")
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("forecast", __doc__, 200, 150), arguments)
    found, margins, training = [], [], program.Training()
    for series in load():
        torch.manual_seed(options.seed)
        model, ends = Forecaster(options.layers, series.ahead), series.ends(test=False)

        def loss_of(step: int, model=model, series=series, ends=ends) -> tuple[Tensor, int]:
            chosen = ends[program.draw(len(ends), BATCH, step, options.seed)]
            features, targets = series.examples(chosen)
            mean, variance = model(features)
            return gaussian_nll_loss(mean, targets, variance), BATCH * series.window

        # Few steps, dropout and decay: a model that knows its years by heart draws bands too narrow.
        training += program.train(
            loss_of, model.parameters(), options.steps, 5e-3, series.name, decay=0.1
        )
        made = forecast(model, series)
        found.append((series, made))
        print(f"{series.name}: {made.inside:.0%} of the unseen points lie in the bands")
        margins.append(
            program.Margin(
                f"error of {series.name}, {series.unit},",
                made.error,
                "one season earlier",
                made.naive,
                made.naive / 5,
                lower=True,
            )
        )
    draw(found, options)
    for series, made in found:
        margins.append(
            program.Margin(
                f"bands of {series.name}, off nine of ten by",
                abs(made.inside - 0.9),
                "allowed",
                0.15,
                0,
                lower=True,
            )
        )
    return program.close(options, training, "points", *margins)


if __name__ == "__main__":
    program.run(main)

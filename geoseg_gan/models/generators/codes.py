"""Style codes: the look of every region of a real image in a few numbers, and a bank of them.

Features are averaged over each region, after SEAN (Zhu et al. 2020, sec. 3.1), here over connected
regions, into few channels and with noise on them, so that a code is a look and not a copy.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.layers import check_minimum

TABLE = 1024
"""Regions of an image that can have a code of their own; further ones share them."""

ROWS = 256
"""Images whose codes the bank holds: the newest that training has seen."""

_LARGEST = 4  # regions of every class whose codes are kept of an image
_WIDTH = 16  # channels of the encoder
_BLUR = 0.1  # standard deviation of the noise on each channel of a code, whose variance is 1
_SIZES = 0.5  # likewise, on the logarithm of the size by which a region is chosen


def draws_of_codes(channels: int) -> int:
    """How many random numbers the codes of an image take."""
    return ROWS + TABLE + channels * TABLE if channels else 0


@dataclass(frozen=True)
class OwnCodes:
    """Codes of real images for the generated images that are to have their look.

    Attributes:
        table: Shape (B, S, 1024), as an encoder gives them.
        used: Shape (B,), bool; the other images take codes from the bank.
    """

    table: Tensor
    used: Tensor


class StyleCodes(nn.Module):
    """An encoder of the regions of real images, and a bank of their codes.

    A code has S channels with a mean square of 1. A row of the bank is an image; of each class it
    holds the codes of up to four regions, the largest, and their pixels.

    Args:
        num_classes: C.
        image_channels: K.
        channels: S.

    Raises:
        ValueError: If the number of channels is negative.
    """

    bank: Tensor
    count: Tensor

    def __init__(self, num_classes: int, image_channels: int, channels: int) -> None:
        """Builds the encoder; the bank is empty."""
        super().__init__()
        check_minimum(0, style_codes=channels)
        self.num_classes = num_classes
        self.encode = nn.Sequential(
            nn.Conv2d(image_channels, _WIDTH, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, channels, 1),
        )
        # He et al. (2015): with smaller weights, codes would hardly differ before they are learnt.
        for layer in self.encode:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, 0.2)
        # The last channel holds pixels. Class and place lie in one dimension, since of four
        # dimensions the second would be taken for channels.
        entries = torch.zeros(ROWS, num_classes * _LARGEST, channels + 1)
        self.register_buffer("bank", entries)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor, regions: Tensor) -> Tensor:
        """The codes of images (B, K, H, W) in [-1, 1] by region number: (B, S, 1024), float32.

        They are 0 where there is no region. `regions` are region numbers, (B, H, W).
        """
        features = F.interpolate(self.encode(image), size=regions.shape[-2:])
        values = features.flatten(2).float()
        sums = values.new_zeros(*values.shape[:2], TABLE)
        sums = sums.scatter_add(2, _places(regions).unsqueeze(1).expand_as(values), values)
        # Sums have the direction of means, and only that is kept.
        return F.normalize(sums, dim=1, eps=1e-6) * math.sqrt(sums.shape[1])

    @torch.no_grad()
    def entries(self, image: Tensor, label: Tensor, regions: Tensor) -> Tensor:
        """What `remember` keeps of images, whose label maps are (B, H, W)."""
        table = self(image, regions)
        kinds, pixels = _kinds(label, regions)
        classes = torch.arange(self.num_classes, device=label.device).view(-1, 1)
        found, which = ((kinds[:, None] == classes) * pixels[:, None]).topk(_LARGEST, dim=2)
        which, found = which.flatten(1).unsqueeze(1), found.flatten(1).unsqueeze(1)
        kept = table.gather(2, which.expand(-1, table.shape[1], -1)) * (found > 0)
        return torch.cat([kept, found], 1).transpose(1, 2)

    @torch.no_grad()
    def remember(self, entries: Tensor) -> None:
        """Puts images into the bank, in place of those that have been there for longest."""
        entries = entries[-ROWS:]
        rows = (self.count + torch.arange(len(entries), device=entries.device)) % ROWS
        self.bank.index_copy_(0, rows, entries)
        self.count += len(entries)

    def maps(
        self, drawn: Tensor, label: Tensor, regions: Tensor, own: OwnCodes | None = None
    ) -> Tensor:
        """A code for every pixel, that of its region, with noise on it; 0 where ignored.

        Args:
            drawn: Standard normal, shape (B, draws_of_codes(S)); it says what is drawn.
            label: Shape (B, H, W), uint8.
            regions: Number of every pixel's region, shape (B, H, W).
            own: Codes that are not drawn from the bank; None for none.

        Returns:
            Shape (B, S, H, W), float32.
        """
        order, sizes, blur = torch.split(drawn, [ROWS, TABLE, drawn.shape[1] - ROWS - TABLE], 1)
        table = self._from_bank(order, sizes, *_kinds(label, regions))
        if own is not None:
            table = torch.where(own.used.view(-1, 1, 1), own.table, table)
        table = table + _BLUR * blur.view_as(table)
        places = _places(regions).unsqueeze(1).expand(-1, table.shape[1], -1)
        codes = table.gather(2, places).view(*table.shape[:2], *label.shape[1:])
        found: Tensor = codes * (label != IGNORE).unsqueeze(1)
        return found

    def _from_bank(self, order: Tensor, sizes: Tensor, kinds: Tensor, pixels: Tensor) -> Tensor:
        """Codes of regions, (B, S, 1024): of one size with them, and all of one image if possible.

        Of the bank's images, in a random order, the first that shows a class gives its codes.
        """
        bank = self.bank.view(ROWS, self.num_classes, _LARGEST, -1)
        codes, offered = bank[..., :-1], bank[..., -1]
        lacking = offered[..., 0] == 0
        rows = order.unsqueeze(2).masked_fill(lacking, -torch.inf).argmax(1)
        kinds = kinds.clamp(max=self.num_classes - 1)
        rows = rows.gather(1, kinds)
        wanted = pixels.clamp(min=1).log() + _SIZES * sizes
        unlike = (offered[rows, kinds].log() - wanted.unsqueeze(2)).abs()
        chosen: Tensor = codes[rows, kinds, unlike.argmin(2)]
        return chosen.transpose(1, 2)


def _places(regions: Tensor) -> Tensor:
    """The place of every pixel's region in the table, shape (B, H * W), int64."""
    return (regions.long() % TABLE).flatten(1)


def _kinds(label: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Class, int64, and pixels, float32, of every region: shape (B, 1024) each."""
    places = _places(regions)
    kinds = torch.full((len(label), TABLE), IGNORE, device=label.device)
    pixels = torch.zeros(len(label), TABLE, device=label.device)
    ones = pixels.new_ones(()).expand(places.shape)
    return kinds.scatter(1, places, label.flatten(1).long()), pixels.scatter_add(1, places, ones)

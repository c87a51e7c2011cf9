"""Decode images in worker processes, so that none holds another up: lanes by estimated cost, fair turns in each.

Every lane has workers of its own and a thread for each, which waits for the worker's answer. An
image that takes longer than its header promised goes on in the lane of the slowest.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from vitrail.images.decoding import check_picture
from vitrail.images.formats import READ
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import Preprocess
from vitrail.inference.predictor import read_view
from vitrail.server.cost import BYTE_S, Cost, estimate_cost
from vitrail.server.fork_server import Answer, ForkServer, ForkServerGone, Worker, WorkerLost
from vitrail.server.log import FIELDS
from vitrail.server.settings import Limits
from vitrail.server.turns import Turns

ADVICE = "save it as a plain JPEG or PNG"
BASE64 = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"SUkqA", b"TU0AK", b"data:image/")
"""JPEG, PNG, GIF, WebP and TIFF as base64 text, and what browsers write before it."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats of which one image is decoded before workers are forked, so that Pillow's plugins are
loaded."""
LATE_IMPORTS = ("tifffile", "imagecodecs")
"""Packages that decoding imports where it first needs them, and no worker should have to."""
VIEW, UNREADABLE, BROKEN = b"r", b"u", b"b"
"""Letters of a worker's answer: what the model sees, why the image cannot be read, or the traceback
of an error."""
QUICK_S = 0.1
"""Estimated seconds that the first lane takes at most; a JPEG of 10 megapixels."""
LONGER_S = 1.0
"""Estimated seconds that the second lane takes at most."""
LENIENCY = 4
"""How many times its estimate an image of the first two lanes may take."""
AT_LEAST_S = 0.03
"""Seconds that an image of the first two lanes may take beside."""
WALL = 10
"""How many times its processor time an image may take in all, on a machine with other work."""
HELD_UP_S = 5.0
"""Seconds in which no image may be done, beyond what is allowed, until the decoders count as
wedged."""
LONG_FILE = 2**20
"""Bytes above which even the look at a header is left to another thread."""
MOST_TOLD = 200
"""Letters that are logged of what a decoder prints."""

log = logging.getLogger(__name__)


class NotDecoded(Exception):
    """The decoder failed, which is no fault of the image's; the log has the reason."""


@dataclass(eq=False)
class _Job:
    """One image to decode."""

    client: tuple[Hashable, ...]
    read_file: Callable[[], bytes | bytearray]
    """Returns the file, or raises IndexError where the client is gone."""
    cost: Cost
    answer: Future[Tensor] = field(default_factory=Future)
    is_wanted: bool = True
    is_second: bool = False
    """Whether a worker was lost over it already."""


@dataclass(eq=False)
class _Lane:
    """Workers that take images up to a cost, so that a small one never waits for a large one."""

    most_s: float
    """Largest estimated decoding time, in seconds, of the images it takes."""
    workers: int
    """Number of worker processes."""
    niceness: int
    """Niceness of the workers: the engine and the small images go first."""
    waiting: Turns[_Job] = field(default_factory=Turns)
    moved: float = field(default_factory=time.monotonic)
    """When the last image was done, or the first came."""
    at_work: int = 0
    """Number of images that workers have now."""


class Decoders:
    """Worker processes that turn image files into what the model sees.

    Args:
        preprocess: The preprocessing of the model.
        limits: Limits of requests, of which pixels and seconds of one image matter here.
    """

    def __init__(self, preprocess: Preprocess, limits: Limits) -> None:
        self._preprocess = preprocess
        self._limits = limits
        cores = os.cpu_count() or 1
        self._lanes = [
            _Lane(QUICK_S, workers=min(8, cores), niceness=0),
            _Lane(LONGER_S, workers=min(4, max(1, cores // 2)), niceness=5),
            _Lane(limits.decode_s, workers=min(4, max(1, cores // 4)), niceness=10),
        ]
        self._changed = threading.Condition()
        self._is_open = True
        self._trouble: str | None = None
        self._fork_server = ForkServer(self._decode, self._warm_up)
        for lane in self._lanes:
            for _ in range(lane.workers):
                threading.Thread(
                    target=self._run_lane, args=(lane,), name="decode", daemon=True
                ).start()

    @property
    def trouble(self) -> str | None:
        """What is wrong with the decoders; None where nothing is."""
        if any(map(self._is_wedged, self._lanes)):
            return "the decoders do not answer"
        return self._trouble

    def _is_wedged(self, lane: _Lane) -> bool:
        """Say whether a lane has work and gets on with none of it."""
        if not lane.waiting and not lane.at_work:
            return False
        _, wall_s = self._allow(lane, Cost(lane.most_s, 0, ""))
        return time.monotonic() - lane.moved > HELD_UP_S + wall_s

    async def read(
        self, client: tuple[Hashable, ...], read_file: Callable[[], bytes | bytearray]
    ) -> Tensor:
        """Return what the model is to see of an image file.

        Args:
            client: Names the asker, as for `Turns`.
            read_file: Returns the file; so nothing is held on behalf of a client who waits no more.

        Raises:
            UnreadableImage: It cannot be decoded, or not within the limits.
            NotDecoded: The decoder failed.
        """
        cost = await self._estimate_cost(read_file())
        job = _Job(client, read_file, cost)
        self._put(self._choose_lane(cost), job)
        try:
            return await asyncio.wrap_future(job.answer)
        finally:
            job.is_wanted = False
            with self._changed:
                for lane in self._lanes:
                    lane.waiting.discard(client, job)

    async def _estimate_cost(self, file: bytes | bytearray) -> Cost:
        """Return what decoding a file will cost; refuse one that is no image, or that would cost too much."""
        if file[:64].lstrip(b" \t\r\n\"'").startswith(BASE64):
            raise UnreadableImage(
                f"is base64 text; decode it, and send the bytes of the image ({READ} are read)"
            )
        if len(file) > LONG_FILE:
            cost = await asyncio.get_running_loop().run_in_executor(None, estimate_cost, file)
        else:
            cost = estimate_cost(file)
        if cost.pixels > self._limits.max_pixels:
            cost = Cost(len(file) * BYTE_S, 0, "")  # it is refused before anything is decoded
        if cost.seconds > self._limits.decode_s:
            raise UnreadableImage(
                f"would take about {cost.seconds:.0f} s to decode, {cost.reason}; at most "
                f"{self._limits.decode_s:g} s are taken; {ADVICE}"
            )
        return cost

    def _choose_lane(self, cost: Cost) -> _Lane:
        for lane in self._lanes:
            if cost.seconds <= lane.most_s:
                return lane
        return self._lanes[-1]

    def close(self) -> None:
        """Let the workers end."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._fork_server.close()

    def _put(self, lane: _Lane, job: _Job) -> None:
        with self._changed:
            if not lane.waiting and not lane.at_work:
                lane.moved = time.monotonic()
            lane.waiting.put(job.client, job, job.cost.seconds)
            self._changed.notify_all()

    def _run_lane(self, lane: _Lane) -> None:
        """Give one worker of a lane its work, and replace it when it is lost."""
        worker: Worker | None = None
        try:
            worker = self._start_worker(lane)  # before it is needed
        except ForkServerGone as gone:
            self._note_trouble(gone)
        while (job := self._take(lane)) is not None:
            try:
                worker = worker or self._start_worker(lane)
                self._decode_in(worker, lane, job)
            except WorkerLost as lost:
                worker = None
                self._handle_lost_worker(lane, job, lost)
            except ForkServerGone as gone:
                worker = None
                self._note_trouble(gone)
                self._fail(job, NotDecoded())
            except Exception as error:
                log.exception("an image could not be decoded")
                self._fail(job, NotDecoded(str(error)))
            finally:
                with self._changed:
                    lane.at_work -= 1
                    lane.moved = time.monotonic()
        if worker is not None:
            worker.close()

    def _take(self, lane: _Lane) -> _Job | None:
        """Wait for the next image of a lane; None when the decoders are closed."""
        with self._changed:
            self._changed.wait_for(lambda: lane.waiting or not self._is_open)
            if not self._is_open:
                return None
            lane.at_work += 1
            return lane.waiting.take()

    def _decode_in(self, worker: Worker, lane: _Lane, job: _Job) -> None:
        """Decode an image in a worker, and answer whoever waits for it."""
        processor_s, wall_s = self._allow(lane, job.cost)
        try:
            file = job.read_file()
        except IndexError:  # the files of a request go when its client does
            return
        answer = worker.run(
            file, processor_s=processor_s, wall_s=wall_s, is_wanted=lambda: job.is_wanted
        )
        self._answer(job, answer)

    def _handle_lost_worker(self, lane: _Lane, job: _Job, lost: WorkerLost) -> None:
        """Try an image again that a worker was lost over, in another lane or once more, or give it up."""
        self._log_printed(lost.printed)
        slowest = self._lanes[-1]
        if lost.is_late and lane is not slowest:
            self._put(slowest, job)  # its header promised too much
        elif lost.is_late:
            processor_s, _ = self._allow(lane, job.cost)
            self._fail(
                job, UnreadableImage(f"takes more than {processor_s:g} s to decode; {ADVICE}")
            )
        elif job.is_wanted and not job.is_second:
            job.is_second = True  # something else may have killed the worker
            self._put(lane, job)
        elif job.is_wanted:
            log.warning("a decoder was lost", extra={FIELDS: {"reason": lost.printed}})
            self._fail(job, UnreadableImage("cannot be decoded: the decoder did not survive it"))

    def _allow(self, lane: _Lane, cost: Cost) -> tuple[float, float]:
        """Return how many seconds an image may take, of a processor's time and in all."""
        processor_s = self._limits.decode_s
        if lane is not self._lanes[-1]:
            processor_s = min(LENIENCY * cost.seconds + AT_LEAST_S, processor_s)
        return processor_s, min(1 + WALL * processor_s, self._limits.timeout_s)

    def _start_worker(self, lane: _Lane) -> Worker:
        worker = self._fork_server.start_worker(lane.niceness)
        self._trouble = None
        return worker

    def _note_trouble(self, gone: ForkServerGone) -> None:
        """Log why no worker can be started, once for as long as that lasts: every request finds it anew."""
        with self._changed:
            if self._trouble is not None or not self._is_open:
                return
            self._trouble = "no decoder can be started"
        log.error(self._trouble, extra={FIELDS: {"reason": str(gone)}})

    def _answer(self, job: _Job, answer: Answer) -> None:
        self._log_printed(answer.printed)
        if answer.letter == UNREADABLE:
            self._fail(job, UnreadableImage(answer.content.decode()))
            return
        if answer.letter != VIEW:
            raise NotDecoded(answer.content.decode())
        height, width = self._preprocess.size
        pixels = torch.frombuffer(answer.content, dtype=self._preprocess.pixels.dtype)
        view = pixels.view(height, width, self._preprocess.channels).permute(2, 0, 1)
        with suppress(InvalidStateError):  # nobody waits any more
            job.answer.set_result(view)

    @staticmethod
    def _fail(job: _Job, error: Exception) -> None:
        with suppress(InvalidStateError):  # nobody waits any more
            job.answer.set_exception(error)

    @staticmethod
    def _log_printed(printed: str) -> None:
        """Log what libpng or libjpeg print of an image, which no log in JSON could bear."""
        if printed:
            log.info("a decoder printed", extra={FIELDS: {"text": printed[:MOST_TOLD]}})

    def _decode(self, data: bytearray) -> tuple[bytes, bytes]:
        """Decode an image, in a worker."""
        try:
            file = bytes(data)
            check_picture(file, self._limits.max_pixels)
            view = read_view(file, self._preprocess)
        except UnreadableImage as error:
            return UNREADABLE, str(error).encode()
        except Exception:
            return BROKEN, traceback.format_exc().encode()
        return VIEW, view.permute(1, 2, 0).contiguous().numpy().tobytes()

    def _warm_up(self) -> None:
        """Load what decoding needs, in the fork server."""
        torch.set_num_threads(1)
        for name in FORMATS:
            file = io.BytesIO()
            Image.new("RGB", (64, 64)).save(file, name)
            self._decode(bytearray(file.getvalue()))
        for name in LATE_IMPORTS:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)

"""Images decoded in processes of their own, so that none holds another up: by lanes of cost, and by turns in each."""

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

from vitrail.images.decoding import READ, check_picture
from vitrail.images.pixels import UnreadableImage
from vitrail.images.transforms import Preprocess
from vitrail.inference.predictor import read_view
from vitrail.server.cost import A_BYTE, Cost, estimate
from vitrail.server.log import FIELDS
from vitrail.server.nursery import Nursery, NurseryGone, Worker, WorkerLost
from vitrail.server.settings import Limits
from vitrail.server.turns import Turns

BETTER = "save it as a plain JPEG or PNG"
BASE64 = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"SUkqA", b"TU0AK", b"data:image/")
"""JPEG, PNG, GIF, WebP and TIFF as text, and what browsers write before it."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LATE_IMPORTS = ("tifffile", "imagecodecs")
"""What decoding imports where it is first needed, and no worker should have to."""
VIEW, UNREADABLE, BROKEN = b"r", b"u", b"b"
QUICK_S, LONGER_S = 0.1, 1.0
"""Estimated seconds that the first two lanes take at most; 0.1 is a JPEG of 10 megapixels."""
LENIENCY, AT_LEAST_S = 4, 0.03
"""How many times its estimate an image of these may take, and seconds beside."""
WALL = 10
"""How many times of that may pass at least, on a machine with other work."""
HELD_UP_S = 5.0
"""How long nothing may move, beyond what is allowed, until the decoders count as wedged."""
LONG_FILE = 2**20
"""Bytes above which even the look at a header is left to another thread."""
MOST_TOLD = 200
"""Letters that are logged of what a decoder prints."""

log = logging.getLogger(__name__)


class NotDecoded(Exception):
    """The decoder failed, which is no fault of the image's; the log has the reason."""


class _Left(Exception):
    """The client that sent an image is gone."""


@dataclass(eq=False)
class _Job:
    who: tuple[Hashable, ...]
    data: Callable[[], bytes | bytearray]
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
    niceness: int
    """The engine and the small images go first."""
    waiting: Turns[_Job] = field(default_factory=Turns)
    moved: float = field(default_factory=time.monotonic)
    """When the last image was done, or the first came."""
    at_work: int = 0


class Decoders:
    """Processes that turn files into views.

    Args:
        preprocess: What the model is to see.
        limits: Pixels, and seconds of one image.
    """

    def __init__(self, preprocess: Preprocess, limits: Limits) -> None:
        self._preprocess, self._limits = preprocess, limits
        cores = os.cpu_count() or 1
        self._lanes = [
            _Lane(QUICK_S, min(8, cores), 0),
            _Lane(LONGER_S, min(4, max(1, cores // 2)), 5),
            _Lane(limits.decode_s, min(4, max(1, cores // 4)), 10),
        ]
        self._changed = threading.Condition()
        self._is_open = True
        self._trouble: str | None = None
        self._nursery = Nursery(self._work, self._warm_up)
        for lane in self._lanes:
            for _ in range(lane.workers):
                threading.Thread(target=self._run, args=(lane,), name="decode", daemon=True).start()

    @property
    def trouble(self) -> str | None:
        """What is wrong with them, if anything is."""
        now = time.monotonic()
        is_held_up = any(
            (lane.waiting or lane.at_work)
            and now - lane.moved > HELD_UP_S + self._allow(lane, Cost(lane.most_s, 0, ""))[1]
            for lane in self._lanes
        )
        return "the decoders do not answer" if is_held_up else self._trouble

    async def read(self, who: tuple[Hashable, ...], data: Callable[[], bytes | bytearray]) -> Tensor:
        """Return what the model is to see of an image file.

        Args:
            who: Asks, as for `Turns`.
            data: Returns the file; so nothing is held on behalf of someone who waits no more.

        Raises:
            UnreadableImage: It cannot be decoded, or not within the limits.
            NotDecoded: The decoder failed.
        """
        file = data()
        if file[:64].lstrip(b" \t\r\n\"'").startswith(BASE64):
            raise UnreadableImage(f"is base64 text; decode it, and send the bytes of the image ({READ} are read)")
        if len(file) > LONG_FILE:
            cost = await asyncio.get_running_loop().run_in_executor(None, estimate, file)
        else:
            cost = estimate(file)
        if cost.pixels > self._limits.max_pixels:
            cost = Cost(len(file) * A_BYTE, 0, "")  # it is refused before anything is decoded
        del file
        if cost.seconds > self._limits.decode_s:
            raise UnreadableImage(
                f"would take about {cost.seconds:.0f} s to decode, {cost.reason}; at most {self._limits.decode_s:g} s "
                f"are taken; {BETTER}"
            )
        job = _Job(who, data, cost)
        self._put(next((lane for lane in self._lanes if cost.seconds <= lane.most_s), self._lanes[-1]), job)
        try:
            return await asyncio.wrap_future(job.answer)
        finally:
            job.is_wanted = False
            with self._changed:
                for lane in self._lanes:
                    lane.waiting.discard(who, job)

    def close(self) -> None:
        """Let them end."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._nursery.close()

    def _put(self, lane: _Lane, job: _Job) -> None:
        with self._changed:
            if not lane.waiting and not lane.at_work:
                lane.moved = time.monotonic()
            lane.waiting.put(job.who, job, job.cost.seconds)
            self._changed.notify_all()

    def _run(self, lane: _Lane) -> None:
        """Give one worker of a lane its work."""
        worker: Worker | None = None
        try:
            worker = self._make(lane)  # before it is needed
        except NurseryGone as gone:
            self._note_trouble(gone)
        while (job := self._next(lane)) is not None:
            allowed, wall = self._allow(lane, job.cost)
            try:
                worker = worker or self._make(lane)
                with suppress(_Left):
                    data = self._data(job)
                    self._answer(job, worker.ask(data, processor_s=allowed, wall_s=wall,
                                                 is_wanted=lambda job=job: job.is_wanted))  # fmt: skip
            except WorkerLost as lost:
                worker = None
                self._say(lost.said)
                if lost.is_late and lane is not self._lanes[-1]:
                    self._put(self._lanes[-1], job)  # it is not what it seems
                elif lost.is_late:
                    self._fail(job, UnreadableImage(f"takes more than {allowed:g} s to decode; {BETTER}"))
                elif job.is_wanted and not job.is_second:
                    job.is_second = True  # something else may have killed the worker
                    self._put(lane, job)
                elif job.is_wanted:
                    log.warning("a decoder was lost", extra={FIELDS: {"reason": lost.said}})
                    self._fail(job, UnreadableImage("cannot be decoded: the decoder did not survive it"))
            except NurseryGone as gone:
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

    def _data(self, job: _Job) -> bytes | bytearray:
        """Return the file of an image, which goes when its client does."""
        try:
            return job.data()
        except IndexError as error:
            raise _Left from error

    def _allow(self, lane: _Lane, cost: Cost) -> tuple[float, float]:
        """Return how long an image may take, of a processor's time and in all."""
        longest, timeout = self._limits.decode_s, self._limits.timeout_s
        allowed = longest if lane is self._lanes[-1] else min(LENIENCY * cost.seconds + AT_LEAST_S, longest)
        return allowed, min(1 + WALL * allowed, timeout)

    def _next(self, lane: _Lane) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: lane.waiting or not self._is_open)
            if not self._is_open:
                return None
            lane.at_work += 1
            return lane.waiting.take()

    def _make(self, lane: _Lane) -> Worker:
        worker = self._nursery.make(lane.niceness)
        self._trouble = None
        return worker

    def _note_trouble(self, gone: NurseryGone) -> None:
        """Log why no worker can be made, once for as long as that lasts: every request finds it anew."""
        with self._changed:
            if self._trouble is not None or not self._is_open:
                return
            self._trouble = "no decoder can be started"
        log.error(self._trouble, extra={FIELDS: {"reason": str(gone)}})

    def _answer(self, job: _Job, answer: tuple[bytes, bytearray, str]) -> None:
        letter, content, said = answer
        self._say(said)
        if letter == VIEW:
            (height, width), channels = self._preprocess.size, self._preprocess.channels
            pixels = torch.frombuffer(content, dtype=self._preprocess.pixels.dtype)
            with suppress(InvalidStateError):
                job.answer.set_result(pixels.view(height, width, channels).permute(2, 0, 1))
        elif letter == UNREADABLE:
            self._fail(job, UnreadableImage(content.decode()))
        else:
            raise NotDecoded(content.decode())

    @staticmethod
    def _fail(job: _Job, error: Exception) -> None:
        with suppress(InvalidStateError):  # nobody waits any more
            job.answer.set_exception(error)

    @staticmethod
    def _say(said: str) -> None:
        """Log what libpng or libjpeg print of an image, which no log in JSON could bear."""
        if said:
            log.info("a decoder printed", extra={FIELDS: {"text": said[:MOST_TOLD]}})

    def _work(self, data: bytearray) -> tuple[bytes, bytes]:
        """Decode, in a worker."""
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
        """Load what decoding needs, in the nursery."""
        torch.set_num_threads(1)
        for form in FORMATS:
            file = io.BytesIO()
            Image.new("RGB", (64, 64)).save(file, form)
            self._work(bytearray(file.getvalue()))
        for name in LATE_IMPORTS:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)

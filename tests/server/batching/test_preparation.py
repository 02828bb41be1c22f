"""Raw rows are prepared off the loop, with the same limits, deadlines and cancellation as tensors."""

import asyncio
import gc
import weakref

from pytest import fixture, mark, raises

from runtime.errors import SignatureMismatch
from runtime.preprocessing.preparation import RawRows
from runtime.preprocessing.tokenizer import Tokenizer
from server.errors import DeadlineExceeded, NotReady, Overloaded
from tests.image_files import plain
from tests.server.batching.calls import begun, on_a_loop
from tests.server.fakes import Gate, RecordedFailures, serving
from tests.server.image_model import ImageModel
from tests.server.text_model import TextModel
from tests.tokenizer_files import ids, splitting, words


@fixture
def model():
    """A model that sums the ids of texts."""
    return TextModel()


@fixture
def gate(model):
    """Blocks before each preparation."""
    model.before_preparing = Gate()
    return model.before_preparing


def asked(service, *texts, timeout_s=None):
    """Begin a request; return its future."""
    result = asyncio.get_running_loop().create_future()
    raw = RawRows({"text": list(texts)}, len(texts))
    request = service.submit(raw, result.set_result, timeout_s)
    return request, result


async def answered(asked_for):
    """Return the answer to a request: the sums, in order."""
    answer = await asked_for[1]
    if isinstance(answer, Exception):
        raise answer
    return answer.outputs["total"].tolist()


@on_a_loop
async def test_texts_are_answered_in_order(model):
    """Rows of several lengths are returned in the order of the request, with metadata."""
    texts = ["the cat sat on a mat", "cat", "a dog ran", "dog"]
    async with serving(model) as service:
        asked_for = asked(service, *texts)
        assert await answered(asked_for) == [sum(ids(text)) for text in texts]
        prepared = asked_for[1].result().metadata.prepared

    assert (prepared.tokens, prepared.truncated) == (8 + 3 + 5 + 3, 0)
    assert service.metrics.prepared.count == 1
    assert service.metrics.tokens == 19


@on_a_loop
async def test_no_rows_are_an_answer(model):
    """A request without texts is answered without rows."""
    async with serving(model) as service:
        assert await answered(asked(service)) == []


@on_a_loop
async def test_one_bad_text_fails_its_own_request(model):
    """An invalid text is an error of its own request only."""
    async with serving(model) as service:
        good, bad = asked(service, "cat"), asked(service, "dog", "cat " * 8)

        with raises(
            SignatureMismatch, match=r"^input 'text'\[1\]: expected at most 8 tokens, got 10$"
        ):
            await answered(bad)
        assert await answered(good) == [sum(ids("cat"))]
        assert service.queued_rows == 0


@on_a_loop
async def test_rows_that_are_prepared_have_their_place(model, gate):
    """Rows count in the queue before their preparation begins; beyond its capacity they are refused."""
    async with serving(model, queue_rows=3) as service:
        first, second = asked(service, "cat", "dog"), asked(service, "mat")
        await gate.reached()

        assert service.queued_rows == 3
        with raises(Overloaded, match=r"^the queue is full: 3 of 3 rows wait$"):
            asked(service, "ran")
        gate.open(runs=2)
        assert await answered(first) == [sum(ids("cat")), sum(ids("dog"))]
        assert await answered(second) == [sum(ids("mat"))]
        assert service.queued_rows == 0


def turns_of(service):
    """Return the numbers of requests that threads take at once, in order."""
    pool = service._preparation
    submit = pool._executor.submit
    found = []

    def counted(function, requests):
        found.append(len(requests))
        return submit(function, requests)

    pool._executor.submit = counted
    return found


@on_a_loop
async def test_a_thread_takes_several_short_texts_at_once(model, gate):
    """Requests that wait while a thread is busy are taken by it together; each has its own answer or error."""
    async with serving(model) as service:
        turns = turns_of(service)
        first = asked(service, "cat")
        await gate.reached()
        others = [asked(service, text) for text in ("dog", "cat " * 8, "a mat")]
        late = asked(service, "ran", timeout_s=0.01)
        with raises(DeadlineExceeded):
            await answered(late)
        gate.open(runs=4)

        assert await answered(first) == [sum(ids("cat"))]
        assert await answered(others[0]) == [sum(ids("dog"))]
        with raises(SignatureMismatch, match=r"at most 8 tokens, got 10$"):
            await answered(others[1])
        assert await answered(others[2]) == [sum(ids("a mat"))]

    assert turns == [1, 3]


@on_a_loop
async def test_a_thread_takes_long_texts_by_themselves(model, gate):
    """Requests are taken together up to a number of bytes, so that none waits long for the others."""
    async with serving(model) as service:
        turns = turns_of(service)
        first = asked(service, "cat")
        await gate.reached()
        others = [asked(service, *["cat dog " * 3] * 100) for _ in range(3)]
        gate.open(runs=4)

        await answered(first)
        for one in others:
            await answered(one)

    assert turns == [1, 1, 1, 1]


@on_a_loop
async def test_a_deadline_before_the_preparation_is_kept(model, gate):
    """A request whose deadline passes while it waits frees its place, and is never prepared."""
    async with serving(model) as service:
        first, late = asked(service, "cat"), asked(service, "dog", timeout_s=0.01)
        await gate.reached()

        with raises(DeadlineExceeded, match=r"^no answer within 10 ms$"):
            await answered(late)
        assert service.queued_rows == 1
        gate.open()
        assert await answered(first) == [sum(ids("cat"))]

    assert model.prepared == [["cat"]]


@on_a_loop
async def test_a_deadline_during_the_preparation_is_kept(model, gate):
    """The inputs that a thread still prepares for a late request are dropped, and never run."""
    async with serving(model) as service:
        late = asked(service, "dog", timeout_s=0.01)
        await gate.reached()
        with raises(DeadlineExceeded):
            await answered(late)
        assert service.queued_rows == 0
        gate.open(runs=2)

        assert await answered(asked(service, "cat")) == [sum(ids("cat"))]

    assert len(model.ran) == 1


@on_a_loop
async def test_cancelled_requests_are_not_prepared(model, gate):
    """A request whose client disconnects while it waits is dropped."""
    async with serving(model) as service:
        first, (gone, _) = asked(service, "cat"), asked(service, "dog")
        await gate.reached()
        service.cancel(gone)

        assert service.queued_rows == 1
        gate.open()
        assert await answered(first) == [sum(ids("cat"))]

    assert model.prepared == [["cat"]]


@on_a_loop
async def test_who_may_be_gone_makes_room(model, gate):
    """Where the queue is full a request whose client may have disconnected is refused first."""
    async with serving(model, queue_rows=2) as service:
        first, (doubtful, refused) = asked(service, "cat"), asked(service, "dog")
        await gate.reached()
        service.deprioritize(doubtful)
        last = asked(service, "mat")

        assert isinstance(await refused, Overloaded)
        gate.open(runs=2)
        assert await answered(first) == [sum(ids("cat"))]
        assert await answered(last) == [sum(ids("mat"))]


@on_a_loop
async def test_the_end_waits_for_what_is_prepared(model, gate):
    """When the service stops, requests that are being prepared are answered."""
    async with serving(model) as service:
        request = asked(service, "cat")
        await gate.reached()
        service.stop()
        end = asyncio.ensure_future(service.drained())
        await begun()

        assert not end.done()
        gate.open()
        assert await answered(request) == [sum(ids("cat"))]
        await end


@on_a_loop
async def test_a_preparation_that_does_not_end_ends_the_process(model, gate):
    """Native code that does not return is detected by a timeout, and everything is refused."""
    failures = RecordedFailures()
    async with serving(model, failures, stall_s=0.01) as service:
        request = asked(service, "cat")

        with raises(NotReady):
            await answered(request)
        gate.open()

    assert failures.reasons == ["preparing raw inputs did not come to an end"]


@on_a_loop
async def test_an_error_of_the_code_is_the_requests_own(model):
    """An unexpected exception of a preparation reaches its own request, and no other."""

    def fail(inputs):
        if inputs["text"] == ["dog"]:
            raise RuntimeError("a mistake")

    model.before_preparing = fail
    async with serving(model) as service:
        bad, good = asked(service, "dog"), asked(service, "cat")

        with raises(RuntimeError, match="a mistake"):
            await answered(bad)
        assert await answered(good) == [sum(ids("cat"))]


@on_a_loop
async def test_panics_are_counted(model):
    """A text on which the library's own code fails is its request's error, and in the metrics."""
    [reader] = model.preparer.readers
    reader._tokenizer = Tokenizer(words(splitting("(z+)+$")))
    async with serving(model) as service:
        bad, good = asked(service, "cat", "z" * 24 + "!"), asked(service, "cat")

        with raises(
            SignatureMismatch,
            match=r"^input 'text'\[1\]: expected a text that its tokenizer encodes, got one that it fails on$",
        ):
            await answered(bad)
        assert await answered(good) == [sum(ids("cat"))]
        assert service.metrics.panics == 2


@on_a_loop
async def test_a_thread_leaves_a_request_that_has_ended(model):
    """Between two pieces of its texts a request whose client has disconnected is dropped, for the next one."""
    [reader] = model.preparer.readers
    encode, between, encoded = reader._tokenizer.encode, Gate(), []

    def recorded(texts):
        encoded.append(len(texts))
        if len(encoded) == 1:
            between(texts)
        return encode(texts)

    reader._tokenizer.encode = recorded
    async with serving(model) as service:
        gone, _ = asked(service, *["cat"] * 40)
        await between.reached()
        service.cancel(gone)
        between.open()

        assert await answered(asked(service, "dog")) == [sum(ids("dog"))]

    assert encoded == [16, 1]


@on_a_loop
async def test_each_piece_has_its_time(model):
    """A request of many texts does not count as hanging while it makes progress."""
    failures = RecordedFailures()
    [reader] = model.preparer.readers
    encode, pieces = reader._tokenizer.encode, Gate()

    def slowly(texts):
        pieces(texts)
        return encode(texts)

    reader._tokenizer.encode = slowly
    async with serving(model, failures, stall_s=1000.0) as service:
        request = asked(service, *["cat"] * 40)
        [turn] = {one._turn for one in service._preparation._running.values()}
        for _ in range(3):
            await pieces.reached()
            turn.progress -= 500
            service._preparation._expect_progress(turn)
            pieces.open()

        assert await answered(request) == [sum(ids("cat"))] * 40

    assert failures.reasons == []


class Kept(str):
    """A text that can be found among the garbage collector's objects."""

    __slots__ = ("__weakref__",)


@mark.parametrize("each", [False, True])
def test_a_refused_text_is_gone_with_its_answer(each):
    """Nothing of a refused request stays in memory until the garbage collector's next run."""
    texts = [Kept("cat " * 8), Kept("\ud800"), Kept("cat")]
    gone = [weakref.ref(text) for text in texts]

    async def refuse():
        async with serving(TextModel()) as service:
            result = asyncio.get_running_loop().create_future()
            raw = RawRows({"text": list(texts)}, len(texts), each=each)
            service.submit(raw, result.set_result)
            texts.clear()
            del raw
            assert isinstance(await result, SignatureMismatch) or result.result().errors
            del result
            await asyncio.sleep(0)
            assert [text() for text in gone] == [None] * 3

    gc.disable()
    try:
        asyncio.run(refuse())
    finally:
        gc.enable()


@on_a_loop
async def test_an_ended_request_stops_between_rows():
    """A late request of many images occupies no thread for its remaining images."""
    model = ImageModel()
    gate = Gate()
    reader = model.preparer.readers[0]
    read = reader._pixels
    rows = []

    def slow(value, where, resources):
        rows.append(where)
        gate(None)
        return read(value, where, resources)

    reader._pixels = slow
    async with serving(model) as service:
        done = asyncio.get_running_loop().create_future()
        files = [plain(1, 2, 3)] * 5
        service.submit(RawRows({"image": files}, 5), done.set_result, 0.01)
        await gate.reached()
        assert isinstance(await done, DeadlineExceeded)
        gate.open(runs=5)

        again = asyncio.get_running_loop().create_future()
        service.submit(RawRows({"image": files[:1]}, 1), again.set_result)
        assert (await again).outputs["mean"].tolist() == [[1, 2, 3]]

    assert rows == ["input 'image'[0]"] * 2


@on_a_loop
async def test_only_a_row_that_does_not_end_is_a_stall(model, gate):
    """A request of many rows may take long; the timeout counts from when its thread last began a row."""
    failures = RecordedFailures()
    async with serving(model, failures, stall_s=1000) as service:
        asked_for = asked(service, "cat")
        await gate.reached()
        pool = service._preparation
        [turn] = {one._turn for one in pool._running.values()}

        pool._expect_progress(turn)
        assert failures.reasons == []
        turn.progress -= 2000
        next(iter(pool._running.values())).check()
        pool._expect_progress(turn)
        assert failures.reasons == []
        turn.progress -= 2000
        pool._expect_progress(turn)
        assert failures.reasons == ["preparing raw inputs did not come to an end"]
        gate.open()
        assert isinstance(await asked_for[1], NotReady)


@on_a_loop
async def test_pixels_are_counted_before_they_are_there():
    """Small files that decode to many pixels are refused by the memory budget, and their bytes are released in the end."""
    model = ImageModel()
    row = model.preparer.row_bytes
    async with serving(model, memory_bytes=2 * row) as service:
        done = asyncio.get_running_loop().create_future()
        service.submit(RawRows({"image": [plain(1, 2, 3)] * 2}, 2), done.set_result)
        assert service.memory.size == 2 * row
        with raises(Overloaded):
            service.submit(RawRows({"image": [plain(1, 2, 3)]}, 1), lambda _: None)

        assert (await done).rows == 2
        assert service.memory.size == 0

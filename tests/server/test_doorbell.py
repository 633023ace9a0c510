"""Another thread wakes an event loop, and does not wait for it."""

import asyncio
import threading

from residency.server.doorbell import Doorbell


def test_a_ring_from_another_thread_is_heard_in_the_loop() -> None:
    async def heard_in() -> int:
        heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        bell = Doorbell(asyncio.get_running_loop(), lambda: heard.set_result(threading.get_ident()))
        threading.Thread(target=bell.ring).start()
        return await asyncio.wait_for(heard, 10)

    assert asyncio.run(heard_in()) == threading.get_ident()


def test_rings_while_the_loop_is_busy_are_heard_as_one() -> None:
    async def times_heard() -> int:
        times: list[None] = []
        bell = Doorbell(asyncio.get_running_loop(), lambda: times.append(None))
        for _ in range(3):
            bell.ring()
        await asyncio.sleep(0.05)
        return len(times)

    assert asyncio.run(times_heard()) == 1


def test_nobody_minds_a_ring_after_the_loop_has_ended() -> None:
    async def bell() -> Doorbell:
        return Doorbell(asyncio.get_running_loop(), lambda: None)

    asyncio.run(bell()).ring()

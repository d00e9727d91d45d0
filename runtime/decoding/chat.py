"""A conversation: messages that grow turn by turn, on a session that reads only what is new."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import UsageError
from ..text.messages import Message
from .completion import Completion, Piece, Stream
from .options import GenerationOptions, takes_options
from .session import Session


class Chat:
    """A conversation on a session. Several may use one session in turn; each then reads its whole text.

    Args:
        session: of a bundle with a chat template.
        system: a first message with instructions, or None.

    Attributes:
        messages: the conversation so far.
    """

    def __init__(self, session: Session, system: str | None = None) -> None:
        self.session = session
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    @property
    def defaults(self) -> GenerationOptions:
        """The values of options that `send` is not given: those of the session."""
        return self.session.defaults

    @takes_options
    def send(self, text: str, options: GenerationOptions) -> Turn:
        """Send a message; return the answer as it comes.

        The two messages become part of the conversation when the answer ends, for whatever reason. If
        the answer failed or was dropped, the message can be sent again. Options and errors are those of
        `Session.generate`.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        return Turn(self, asked, self.session.stream(asked, **vars(options)))

    def rewind(self, turns: int = 1) -> None:
        """Remove the last turns, a question and its answer each.

        Raises:
            UsageError: there are not so many.
        """
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not 1 <= turns <= len(asked):
            raise UsageError(f"cannot take back {turns} turns of a conversation of {len(asked)}")
        del self.messages[asked[-turns] :]


class Turn:
    """An answer as it comes: iterate over its pieces, or call `completion()`.

    Attributes:
        stream: the generation, to cancel it or to read its statistics.
    """

    def __init__(self, chat: Chat, asked: list[Message], stream: Stream) -> None:
        self.stream = stream
        self._chat = chat
        self._asked = asked
        self._ended = False

    def __iter__(self) -> Iterator[Piece]:
        for piece in self.stream:
            if self.stream.finish_reason is not None:
                self._end()
            yield piece

    def completion(self) -> Completion:
        """Run to the end and return the whole answer."""
        for _ in self:
            pass
        return self.stream.completion()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            text = self.stream.completion().text
            self._chat.messages = [*self._asked, {"role": "assistant", "content": text}]

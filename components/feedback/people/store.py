"""Questions and what people said about them, in SQLite or PostgreSQL.

    store = Store.open()                                   # MODELYARD_FEEDBACK_URL, else home()/feedback/people.db
    store.write(lambda session: ...)                       # one transaction, tried again where another one came in its way

What a person said is never changed: a change and an undo are a further revision, and the last one counts. Constraints hold what must not
be, whoever writes at the same time: an item twice for one person, more people at an item than it wants, one submission kept twice.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, CheckConstraint, Engine, ForeignKey, Index, String, Text, UniqueConstraint, create_engine, event, inspect
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from components.schema.config import BadInput, Unavailable
from components.schema.people import AskConfig
from components.schema.records import home

T = TypeVar("T")
URL = "MODELYARD_FEEDBACK_URL"
ATTEMPTS, LONGEST_PAUSE_S = 40, 0.5
BUSY_S = 30.0  # how long SQLite waits for another writer
OPEN, DONE, SKIPPED = "open", "done", "skipped"


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON(none_as_null=True), list[Any]: JSON(none_as_null=True)}


class Dataset(Base):
    """Questions that are asked together."""

    __tablename__ = "datasets"
    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    config: Mapped[dict[str, Any]]

    @property
    def asked(self) -> AskConfig:
        return AskConfig.model_validate(self.config)


class Item(Base):
    """A prompt with answers to it. Whose they are, and the right order where it is known, stays here."""

    __tablename__ = "items"
    __table_args__ = (UniqueConstraint("dataset", "digest"), Index("in_order", "dataset", "is_gold", "priority", "id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.name"))
    digest: Mapped[str] = mapped_column(String(32))
    prompt: Mapped[list[Any]]
    answers: Mapped[list[Any]]
    """[{"text", "model"}], by place."""
    gold: Mapped[list[Any] | None]
    """The right ranks by place, where they are known."""
    is_gold: Mapped[bool]
    overlap: Mapped[int]
    priority: Mapped[float] = mapped_column(default=0.0)
    """What is lower is shown first."""


class Annotator(Base):
    """A person who ranks."""

    __tablename__ = "annotators"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(60), unique=True)
    code: Mapped[str | None] = mapped_column(String(200))
    """Salt and hash of the code they sign in with."""


class Claim(Base):
    """An item that was given to a person."""

    __tablename__ = "claims"
    __table_args__ = (
        UniqueConstraint("item_id", "annotator_id"),
        UniqueConstraint("item_id", "slot"),  # slots are 0 ... overlap - 1, and of no value (NULL) for gold and for what ran out or was skipped
        CheckConstraint(f"state in ('{OPEN}', '{DONE}', '{SKIPPED}')"),
        Index("of_a_person", "annotator_id", "state"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    slot: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(8))
    until: Mapped[float]
    """When the lease of an open claim ends, in seconds since 1970."""
    shown: Mapped[list[Any]]
    """The places of the answers in the order in which this person sees them."""
    item: Mapped[Item] = relationship(lazy="joined", innerjoin=True)


class Revision(Base):
    """One thing that a person said about a claim. Only ever added."""

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("claim_id", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    claim_id: Mapped[int] = mapped_column(ForeignKey("claims.id"))
    number: Mapped[int]
    submission: Mapped[str] = mapped_column(String(64), unique=True)
    """The id that the page gave it: sent twice, it is kept once."""
    kind: Mapped[str] = mapped_column(String(8))
    """ranking, skip or undo."""
    opinion: Mapped[dict[str, Any] | None]
    """An Opinion, its lists by place."""
    at: Mapped[float]


class Setting(Base):
    """What the server must remember."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Store:
    """A database, and transactions in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(writes=True)

    @classmethod
    def open(cls, url: str | None = None) -> Store:
        """The configured database, its tables made where there are none. Errors: BadInput, or Unavailable where it does not answer."""
        url = url or os.environ.get(URL) or f"sqlite:///{_file()}"
        if url == f"sqlite:///{_file()}":
            _file().parent.mkdir(parents=True, exist_ok=True)
        try:
            engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise BadInput(
                f"feedback: {URL} is no address of a database that can be used ({str(error).splitlines()[0]}), so nothing could be kept. "
                "Write postgresql://USER@HOST/NAME (pip install 'modelyard[services]'), or unset it for a file"
            ) from None
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _as_we_want_it)
        event.listen(engine, "begin", _begin)
        store = cls(engine)
        store._made()
        return store

    @staticmethod
    def exists() -> bool:
        """Whether anybody was asked already; looking makes nothing."""
        return bool(os.environ.get(URL)) or _file().exists()

    def read(self, work: Callable[[Session], T]) -> T:
        """What `work` gives, of one moment."""
        with Session(self.engine) as session:
            return work(session)

    def write(self, work: Callable[[Session], T]) -> T:
        """What `work` gives, kept when this returns. Errors: what `work` raises; Unavailable."""
        for attempt in range(ATTEMPTS):
            try:
                with Session(self._writing, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except (OperationalError, IntegrityError) as error:  # another writer was first, or the database was away for a moment
                if attempt + 1 == ATTEMPTS:
                    raise Unavailable(
                        f"feedback: the database does not take this ({str(error.orig).splitlines()[0]}), {ATTEMPTS} times in a row. Try again later"
                    ) from error
                time.sleep(random.uniform(0, min(LONGEST_PAUSE_S, 0.005 * 2**attempt)))
        raise AssertionError

    def _made(self) -> None:
        """The tables, whoever else makes them at the same moment."""
        try:
            if not inspect(self.engine).has_table(Setting.__tablename__):
                self.write(lambda session: Base.metadata.create_all(session.connection()))
        except (SQLAlchemyError, Unavailable) as error:
            try:
                made = inspect(self.engine).has_table(Setting.__tablename__)
            except DBAPIError:
                made = False
            if not made:
                raise Unavailable(
                    f"feedback: the database {self.engine.url.render_as_string()} does not answer ({str(getattr(error, 'orig', error)).splitlines()[0]}), "
                    f"so nobody can be asked. See to it, or correct {URL}"
                ) from None


def _file() -> Path:
    return home() / "feedback" / "people.db"


def _as_we_want_it(connection: Any, _: Any) -> None:
    """Readers beside one writer, nothing lost with the machine's power, and transactions that begin when we say so."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={int(BUSY_S * 1000)}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Any) -> None:
    """Who will write takes its turn at once: a reader that becomes a writer would be turned away."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

// What a person has in mind about a question before it is sent, and the opinion that it becomes.

export function blank(item) {
  return { ranks: null, moved: false, all_bad: false, flags: item.answers.map(() => []), ratings: item.answers.map(() => ({})), edit: "", from: null, note: "", seconds: 0 };
}

export function opinionOf(draft, item, ranks, seconds) {
  const edited = draft.edit.trim() && draft.edit !== item.answers[draft.from]; // an answer that was not touched is no edit
  return {
    ranks: draft.all_bad ? null : ranks, all_bad: draft.all_bad, note: draft.note, seconds,
    flags: draft.flags.some((one) => one.length) ? draft.flags : [],
    ratings: draft.ratings.some((one) => Object.keys(one).length) ? draft.ratings : [],
    edit: edited ? { answer: draft.from, text: draft.edit } : null,
  };
}

export function draftOf(item, said) {
  const none = blank(item);
  return {
    ranks: said.ranks, moved: true, all_bad: said.all_bad, note: said.note, seconds: said.seconds, edit: said.edit?.text ?? "", from: said.edit?.answer ?? null,
    flags: said.flags.length ? said.flags : none.flags, ratings: said.ratings.length ? said.ratings : none.ratings,
  };
}

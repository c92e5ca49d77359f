// The chart's words in the interface's language: locales/<language>/main.json, which the server gives out with all translations.

/** English, which is also what is left where a language or a word is missing. */
export const ENGLISH = {
  hint: "Run to see the guidance here.",
  title: "Guidance over the steps",
  shown: "What is drawn",
  step: "step",
  cfg: "CFG",
  cfg_is: "The strength in ordinary CFG",
  scale: "scale",
  scale_is: "The scale itself: about 1",
  gap: "gap",
  keys: "Arrow keys move along the steps.",
};

/** The words of a language, "zh-TW" or "ja", as a promise. api: ComfyUI's. */
export async function wordsOf(language, api) {
  const base = language.split("-")[0];
  if (base === "en") return ENGLISH;
  const every = await (await api.fetchApi("/i18n")).json();
  return { ...ENGLISH, ...(every[language] ?? every[base])?.annealing_guidance?.chart };
}

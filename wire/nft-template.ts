/**
 * Rules of nftables from text to messages. A table has some hundred thousand rules, but few kinds of them: what a rule
 * compiles to (nft-rule.ts) is kept, without its values, under its text without them. The next one of the kind takes that
 * and fills in its own. Each rule goes this way, whether its kind is known or not: there is no other way that could differ.
 */
import type { Place } from './nft-expressions.ts';
import * as nft from './nft-names.ts';
import { compileRule, type SetLayouts } from './nft-rule.ts';
import { NetlinkWriter } from './nlwriter.ts';

export interface Template {
  /** NFTA_RULE_EXPRESSIONS, with zeros where the values belong. */
  bytes: Uint8Array;
  places: readonly Place[];
}

const kept = new Map<string, Template>();
/** There are some tens of kinds, each with the ports below 1000 that it names. */
const TEMPLATES_MAX = 2_000;

const scratch = new NetlinkWriter();

/** Writes the attributes of a rule; false if it is outside of what is understood here. */
export function writeRule(
  writer: NetlinkWriter,
  table: string,
  chain: string,
  text: string,
  layouts: SetLayouts,
  templates: Map<string, Template> = kept,
): boolean {
  writer.putText(nft.NFTA_RULE_TABLE, table);
  writer.putText(nft.NFTA_RULE_CHAIN, chain);
  const [, statements = text, comment] = (text.endsWith('"') && /^(.*) comment "([!-~]{1,100})"$/.exec(text)) || [];
  if (!writeExpressions(writer, statements, layouts, templates)) return false;
  if (comment !== undefined) writer.putBytes(nft.NFTA_RULE_USERDATA, noteOf(comment));
  return true;
}

/** As nft notes a comment: type 0, length, text with a zero. */
function noteOf(comment: string): Uint8Array {
  const note = new Uint8Array(comment.length + 3);
  note[1] = comment.length + 1;
  for (let i = 0; i < comment.length; i++) note[i + 2] = comment.charCodeAt(i);
  return note;
}

function writeExpressions(
  writer: NetlinkWriter,
  text: string,
  layouts: SetLayouts,
  templates: Map<string, Template>,
): boolean {
  let words: readonly string[] = text.split(' ');
  const kind = kindOf(words);
  if (kind === undefined) words = text.match(WORDS) ?? [];
  const known = kind === undefined ? undefined : templates.get(kind);
  if (known !== undefined) return fill(writer, known, words);

  scratch.cut(0);
  const expressions = scratch.open(nft.NFTA_RULE_EXPRESSIONS);
  const compiled = compileRule(scratch, words, layouts);
  if (compiled === undefined) return false;
  scratch.close(expressions);
  const { places, open, asksSet } = compiled;
  const template = { bytes: scratch.written().slice(), places };
  if (!fill(writer, template, words)) return false;
  if (kind !== undefined && !asksSet && words.every((word, index) => !isValue(word) || open.has(index))) {
    if (templates.size === TEMPLATES_MAX) templates.clear();
    templates.set(kind, template);
  }
  return true;
}

function fill(writer: NetlinkWriter, { bytes, places }: Template, words: readonly string[]): boolean {
  const start = writer.append(bytes.length);
  const { buffer } = writer;
  buffer.set(bytes, start);
  for (const { at, operand } of places) if (!operand.write(words, buffer, start + at)) return false;
  return true;
}

/** Words as nft cuts them, with or without spaces between. */
const WORDS = /"[^"]*"|[(){}]|[^\s(){}"]+/g;

/**
 * The words without the values among them, of which the form stays: a prefix, a range, so many letters of a chain's name.
 * undefined: they are not all apart from each other.
 */
function kindOf(words: readonly string[]): string | undefined {
  let kind = '';
  let leads = false;
  for (const word of words) {
    if (word === '' || word.startsWith('"') || word.startsWith('(')) return undefined;
    if (leads) kind += `#${word.length} `;
    else if (!isValue(word)) kind += `${word} `;
    else kind += word.includes('/') ? '/ ' : word.includes('-') ? '- ' : '. ';
    leads = word === 'goto' || word === 'jump';
  }
  return kind;
}

/** What short numbers say, such as that of a protocol, may be part of the kind. */
function isValue(word: string): boolean {
  if (word.length <= 3) return false;
  const first = word.charCodeAt(0);
  return (first >= 0x30 && first <= 0x39) || word.includes(':');
}

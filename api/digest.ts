/**
 * Names that stand for what they name: of chains, of sets, of groups of pods. What has one name is taken for one thing,
 * and tenants write what many of them are made of. So a name is as long as it must be for nobody to find two things that
 * share one: 128 bits of SHA-256. With 48, as many as would do against chance, a few hours of one graphics card find the
 * name of an ExternalService whose destinations then stand where those of another team's rule are looked up.
 */
import { hash } from 'node:crypto';

export const digest = (content: string): string => hash('sha256', content).slice(0, 32);

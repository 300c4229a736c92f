"""Named reactions from SMILES, most without atom-map numbers, through `molgen.find_ts` as it comes.

    python benchmarks/textbook.py --out runs/textbook [--sets ions water] [--only Claisen Cope]

Those of neutral molecules without numbers once more as structures: each side in the best of its own conformers by
RDKit, the product's atoms shuffled. `elements`: beyond H, C, N and O. `larger`: 21 to 33 atoms. `baker`: the set of
Baker and Chan, of bicyclobutane one reaction; two of its rows turn a bond, from structures. `unseen`: of all kinds,
written down before any was tried. `water`: the ions again, in implicit water, with Gibbs energies at 298.15 K. What is
in OUT/textbook.jsonl already is not run again; the committed file gets the sets of which all rows are there. Then
`benchmarks/tables.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from molgen import find_ts
from molgen.errors import CalculatorError
from molgen.files import write_atomic
from molgen.geometry.rotamers import rotors
from molgen.smiles import embed_molecule
from molgen.tsgen import load_model

ROOT = Path(__file__).resolve().parent.parent
REACTIONS = {
    "keto-enol": "C=CO>>CC=O",
    "HCN to HNC": "C#N>>[C-]#[NH+]",
    "formaldehyde to H2 and CO": "C=O>>[H][H].[C-]#[O+]",
    "diazene, trans to cis": r"[H]/N=N/[H]>>[H]/N=N\[H]",
    "proton transfer in malonaldehyde":
        r"[O:1]([H:9])/[CH:2]=[CH:3]\[CH:4]=[O:5]>>[O:1]=[CH:2]/[CH:3]=[CH:4]\[O:5][H:9]",
    "[1,5]-H shift in pentadiene":
        r"[CH2:1]=[CH:2]/[CH:3]=[CH:4]\[CH2:5][H:6]>>[H:6][CH2:1]/[CH:2]=[CH:3]\[CH:4]=[CH2:5]",
    "Diels-Alder, butadiene and ethene": "C=CC=C.C=C>>C1=CCCCC1",
    "Diels-Alder, butadiene and maleic anhydride": "C=CC=C.O=C1OC(=O)C=C1>>O=C1OC(=O)C2CC=CCC12",
    "Diels-Alder, cyclopentadiene twice": "C1=CCC=C1.C1=CCC=C1>>C1C=CC2C1C1CC2C=C1",
    "Diels-Alder, intramolecular": "C=C/C=C/CCCC=C>>C1=CC2CCCC2CC1",
    "hetero-Diels-Alder with HNO": "C=CC=C.N=O>>C1C=CCON1",
    "cheletropic, butadiene and SO2": "C=CC=C.O=S=O>>C1C=CCS1(=O)=O",
    "hexatriene closes": r"C=C/C=C\C=C>>C1=CCCC=C1",
    "cyclobutene opens": "C1=CCC1>>C=CC=C",
    "Claisen": "C=COCC=C>>O=CCCC=C",
    "Cope": "[CH2:1]=[CH:2][CH2:3][CH2:4][CH:5]=[CH2:6]>>[CH2:3]=[CH:2][CH2:1][CH2:6][CH:5]=[CH2:4]",
    "ene, propene and ethene": "C=CC.C=C>>C=CCCC",
    "ene, propene and formaldehyde": "O=C.C=CC>>OCCC=C",
    "ester pyrolysis": "CC(=O)OCC>>CC(=O)O.C=C",
    "xanthate pyrolysis": "CSC(=S)OCC>>CSC(=O)S.C=C",
    "Cope elimination": "CC[N+](C)(C)[O-]>>C=C.CN(C)O",
    "decarboxylation of acetoacetic acid": "OC(=O)CC(C)=O>>O=C=O.C=C(C)O",
    "aldol, enol and aldehyde": "CC=O.C=CO>>CC(O)CC=O",
    "hydrolysis of an ester": "CC(=O)OC.O>>CC(=O)O.CO",
    "esterification": "CC(=O)O.CO>>CC(=O)OC.O",
    "aminolysis of an ester": "CC(=O)OC.N>>CC(=O)N.CO",
    "hydration of formaldehyde": "C=O.O>>OCO",
    "carbonic acid": "O.O=C=O>>OC(=O)O",
    "SN2, Cl- and CH3Br": "[Cl-].CBr>>ClC.[Br-]",
    "Michael, methanethiol": "C=CC(=O)C.CS>>CSCCC(=O)C",
    "HCl and ethene": "C=C.Cl>>CCCl",
    "H2 and ethene": "C=C.[H][H]>>CC",
    "BH3 and ethene": "C=C.B>>CCB",
    "ketene and ethene, [2+2]": "C=C=O.C=C>>C1CCC1=O",
    "azide and acetylene": "C#C.CN=[N+]=[N-]>>Cn1ccnn1",
    "ozone and ethene": "C=C.O=[O+][O-]>>C1COOO1",
    "cyclopropane to propene": "C1CC1>>CC=C",
    "vinylcyclopropane to cyclopentene": "C=CC1CC1>>C1=CCCC1",
    "Curtius": "CC(=O)N=[N+]=[N-]>>CN=C=O.N#N",
    "Wolff": "[N-]=[N+]=CC=O>>C=C=O.N#N",
}  # fmt: skip
IONS = {
    "SN2, F- and CH3Cl": "[F-].CCl>>CF.[Cl-]",
    "SN2, OH- and CH3Cl": "[OH-].CCl>>CO.[Cl-]",
    "SN2, CN- and CH3Cl": "[C-]#N.CCl>>CC#N.[Cl-]",
    "Menshutkin": "CN(C)C.CCl>>C[N+](C)(C)C.[Cl-]",
    "E2, OH- and C2H5Cl": "[OH-].CCCl>>C=C.O.[Cl-]",
    "E2, F- and C2H5Cl": "[F-].CCCl>>C=C.F.[Cl-]",
    "Grob fragmentation": "[O-]CCCCl>>C=O.C=C.[Cl-]",
    "lactone of chloroacetate": "ClCC(=O)[O-]>>O=C1CO1.[Cl-]",
    "Cl- and acetyl chloride":
        "[Cl-:1].[CH3:2][C:3](=[O:4])[Cl:5]>>[Cl-:5].[CH3:2][C:3](=[O:4])[Cl:1]",
    "OH- and methyl acetate": "[OH-].COC(C)=O>>CC([O-])(O)OC",
    "OH- and formaldehyde": "[OH-].C=O>>OC[O-]",
    "CN- and formaldehyde": "[C-]#N.C=O>>[O-]CC#N",
    "aldol, enolate and formaldehyde": "CC(=O)[CH2-].C=O>>CC(=O)CC[O-]",
    "Michael, enolate and acrolein": "CC(=O)[CH2-].C=CC=O>>CC(=O)CC[CH-]C=O",
    "Cannizzaro, hydride transfer": "OC[O-].C=O>>OC=O.C[O-]",
    "borohydride and formaldehyde": "[BH4-].C=O>>[BH3-]OC",
    "epoxide and OH-": "[OH-].C1CO1>>OCC[O-]",
    "epoxide, protonated, and water": "O.C1C[OH+]1>>OCC[OH2+]",
    "oxy-Cope, anionic": "C=CC([O-])CC=C>>[O-]C=CCCC=C",
    "[2,3]-Wittig": "[CH2-]OCC=C>>[O-]CCC=C",
    "decarboxylation of formylacetate": "O=CCC(=O)[O-]>>C=C[O-].O=C=O",
    "acetic acid and OH-": "[OH-].CC(=O)O>>O.CC(=O)[O-]",
    "NH3 and HCl": "N.Cl>>[NH4+].[Cl-]",
    "methyldiazonium and water": "N#[N+]C.O>>C[OH2+].N#N",
    "Beckmann": "CC(C)=N[OH2+]>>C[N+]#CC.O",
    "pinacol": "CC(C)(O)C(C)(C)[OH2+]>>CC(C)(C)C(C)=[OH+].O",
    "H shift in the butyl cation": "[CH3:1][CH+:2][CH2:3][CH3:4]>>[CH3:1][CH2:2][CH+:3][CH3:4]",
    "cyclopropyl cation opens": "[CH+]1CC1>>[CH2+]C=C",
    "H3O+ and ethene": "[OH3+].C=C>>CC[OH2+]",
    "hexenyl radical closes": "[CH2]CCCC=C>>[CH2]C1CCCC1",
    "cyclopropylcarbinyl radical opens": "[CH2]C1CC1>>[CH2]CC=C",
    "[1,5]-H shift in the butoxyl radical": "[O]CCCC>>OCCC[CH2]",
    "methyl radical and ethane": "[CH3].CC>>C.C[CH2]",
    "OH radical and methane": "[OH].C>>O.[CH3]",
    "Cl atom and ethane": "[Cl].CC>>Cl.C[CH2]",
    "methyl radical and ethene": "[CH3].C=C>>CC[CH2]",
    "tert-butoxyl radical, beta scission": "CC(C)(C)[O]>>CC(C)=O.[CH3]",
}  # fmt: skip
ELEMENTS = {
    "Wittig, oxaphosphetane opens": "C1COP1(C)(C)C>>C=C.O=P(C)(C)C",
    "Wittig, oxaphosphetane forms": "CP(C)(C)=C.C=O>>C1COP1(C)(C)C",
    "Arbuzov": "CO[P+](OC)(OC)C.[Cl-]>>COP(=O)(OC)C.CCl",
    "Staudinger, N2 leaves": "[N-]=[N+]=NC.CP(C)C>>CN=P(C)(C)C.N#N",
    "sulfoxide elimination": "CS(=O)CC>>C=C.CSO",
    "selenoxide elimination": "C[Se](=O)CC>>C=C.C[Se]O",
    "Mislow-Evans": "CS(=O)CC=C>>CSOCC=C",
    "thiirane and a phosphine": "C1CS1.CP(C)C>>C=C.S=P(C)(C)C",
    "Brook": "[SiH3]CC=O>>C=CO[SiH3]",
    "hydrosilylation": "C=C.[SiH4]>>CC[SiH3]",
    "SN2 at silicon": "[F-].C[Si](C)(C)Cl>>F[Si](C)(C)C.[Cl-]",
    "alkyl exchange of a borane": "CB(C)C.C=C>>CCCB(C)C",
    "phosgene to Cl2 and CO": "ClC(Cl)=O>>ClCl.[C-]#[O+]",
    "HF from fluoroethane": "FCC>>C=C.F",
    "bromine and ethene": "C=C.BrBr>>BrCCBr",
    "dichlorocarbene and ethene": "C=C.[C](Cl)Cl>>C1CC1(Cl)Cl",
    "SN2, I- and CH3Br": "[I-].CBr>>CI.[Br-]",
    "anthracene and maleic anhydride":
        "c1ccc2cc3ccccc3cc2c1.O=C1C=CC(=O)O1>>O=C1OC(=O)C2C1C1c3ccccc3C2c2ccccc12",
    "retro-ene, diphenyl": "C=CCC(O)(c1ccccc1)c1ccccc1>>C=CC.O=C(c1ccccc1)c1ccccc1",
    "Claisen, aromatic": "C=CCOc1ccccc1>>C=CCC1C=CC=CC1=O",
    "Hofmann elimination": "C[N+](C)(C)CC.[OH-]>>C=C.CN(C)C.O",
    "hydroxypyridine beside a water": "Oc1ccccn1.O>>O=c1cccc[nH]1.O",
    "hydroxypyridine by way of a water":
        "[H:1][O:2]c1cccc[n:3]1.[H:4][O:5][H:6]>>[O:2]=c1cccc[n:3]1[H:4].[H:1][O:5][H:6]",
    "Prilezhaev": "C=C.OOC=O>>C1CO1.OC=O",
}  # fmt: skip
LARGER = {
    "chorismic acid to prephenic acid":
        "OC(=O)C1=C[C@@H](OC(=C)C(=O)O)[C@H](O)C=C1>>OC(=O)C(=O)C[C@]1(C(=O)O)C=C[C@@H](O)C=C1",
    "Claisen, geranyl vinyl ether": "C=COC/C=C(C)/CCC=C(C)C>>O=CCC(C)(CCC=C(C)C)C=C",
    "Carroll": "CC(O)=CC(=O)OCC=C(C)C>>CC(=O)C(C(=O)O)C(C)(C)C=C",
    "Overman": "N=C(OC/C=C/CCC)C(Cl)(Cl)Cl>>O=C(NC(CCC)C=C)C(Cl)(Cl)Cl",
    "oxy-Cope with a phenyl group": "C=CC(O)(c1ccccc1)CC=C>>OC(c1ccccc1)=CCCC=C",
    "Diels-Alder, isoprene and methyl acrylate": "C=C(C)C=C.C=CC(=O)OC>>CC1=CCC(C(=O)OC)CC1",
    "Diels-Alder, furan and N-methylmaleimide": "c1ccoc1.CN1C(=O)C=CC1=O>>CN1C(=O)C2C3C=CC(O3)C2C1=O",
    "Diels-Alder, cyclopentadiene and benzoquinone":
        "C1=CCC=C1.O=C1C=CC(=O)C=C1>>O=C1C=CC(=O)C2C1C1CC2C=C1",
    "Diels-Alder, intramolecular, of an ester": "C=C/C=C/CCC/C=C/C(=O)OC>>COC(=O)C1C2CCCC2C=CC1",
    "azide and alkyne with phenyl groups": "[N-]=[N+]=Nc1ccccc1.C#Cc1ccccc1>>c1ccc(cc1)-n1cc(nn1)-c1ccccc1",
    "nitrile oxide and styrene": "CC#[N+][O-].C=Cc1ccccc1>>CC1=NOC(C1)c1ccccc1",
    "Conia-ene": "CC(O)=CC(=O)CCCC#C>>CC(=O)C1C(=O)CCCC1=C",
    "citronellal to isopulegol": "CC(CCC=C(C)C)CC=O>>CC1CCC(C(C)=C)C(O)C1",
    "aldol, enol of acetone and benzaldehyde": "C=C(C)O.O=Cc1ccccc1>>CC(=O)CC(O)c1ccccc1",
    "Michael, enol of acetylacetone and butenone": "CC(O)=CC(C)=O.C=CC(C)=O>>CC(=O)C(C(C)=O)CCC(C)=O",
    "aspirin and water": "CC(=O)Oc1ccccc1C(=O)O.O>>CC(=O)O.Oc1ccccc1C(=O)O",
    "hexatriene diester closes": r"COC(=O)/C=C/C=C\C=C\C(=O)OC>>COC(=O)C1C=CC=CC1C(=O)OC",
    "Nazarov": "CC(=CC)C(=[OH+])C(C)=CC>>CC1C(C)C(C)=C([OH])[C+]1C",
    "SNAr, methoxide and fluorodinitrobenzene":
        "C[O-].Fc1ccc(cc1[N+](=O)[O-])[N+](=O)[O-]>>COc1ccc(cc1[N+](=O)[O-])[N+](=O)[O-].[F-]",
}  # fmt: skip
BAKER = {  # those that the sets above have not are as in J. Baker and F. Chan, J. Comput. Chem. 17, 888 (1996)
    **{name: REACTIONS[name] for name in ("HCN to HNC", "formaldehyde to H2 and CO", "keto-enol", "Claisen")},
    "Diels-Alder, butadiene and ethene": REACTIONS["Diels-Alder, butadiene and ethene"],
    "HF from fluoroethane": ELEMENTS["HF from fluoroethane"],
    "acetylene to vinylidene": "C#C>>C=[C]",
    "methoxyl to hydroxymethyl": "C[O]>>[CH2]O",
    "cyclopropyl radical opens": "[CH]1CC1>>[CH2]C=C",
    "bicyclobutane to butadiene": "C1C2CC12>>C=CC=C",
    "shift in the formyloxyethyl radical": "[CH2:1][CH2:2][O:3][CH:4]=[O:5]>>[CH2:2][CH2:1][O:5][CH:4]=[O:3]",
    "s-tetrazine to HCN and N2": "c1nncnn1>>C#N.C#N.N#N",
    "butadiene turns": "C=CC=C",
    "H2 from ethane": "CC>>C=C.[H][H]",
    "HCl from formyl chloride": "O=CCl>>Cl.[C-]#[O+]",
    "metaphosphate and water": "O.O=P(=O)[O-]>>OP(=O)(O)[O-]",
    "silylene and ethane": "[SiH2].CC>>CC[SiH3]",
    "HNCCS to HNC and CS": "N=C=C=S>>[C-]#[NH+].[C-]#[S+]",
    "CO from protonated formamide": "[NH3+]C=O>>[NH4+].[C-]#[O+]",
    "acrolein turns": "C=CC=O",
    "formohydroxamic acid, H shift": "O=CNO>>OC=[NH+][O-]",
    "HNC and H2": "[C-]#[NH+].[H][H]>>C=N",
    "methanimine to aminocarbene": "C=N>>[CH]N",
    "aminocarbene to HCN and H2": "[CH]N>>C#N.[H][H]",
}
UNSEEN = {  # written down on 28 November 2026 before any of them was tried
    "formamide tautomer": "NC=O>>N=CO",
    "formic acid, dehydration": "OC=O>>[C-]#[O+].O",
    "formic acid, decarboxylation": "OC=O>>O=C=O.[H][H]",
    "HONO from nitroethane": "CC[N+](=O)[O-]>>C=C.ON=O",
    "beta-lactone": "O=C1CCO1>>C=C.O=C=O",
    "methyl nitrite": "CON=O>>C=O.N=O",
    "methyl isocyanide": "C[N+]#[C-]>>CC#N",
    "retro-aldol": "OCCC=O>>C=O.C=CO",
    "Payne": "CC1OC1C[O-]>>CC([O-])C1CO1",
    "Ireland-Claisen": "C=C(O)OCC=C>>OC(=O)CCC=C",
    "Hofmann rearrangement": "CC(=O)[N-]Br>>CN=C=O.[Br-]",
    "Baeyer-Villiger": "CC(C)(O)OOC=O>>CC(=O)OC.OC=O",
    "nitrone": "C=[N+](C)[O-].C=C>>CN1CCCO1",
    "ketene and water": "C=C=O.O>>CC(=O)O",
    "diazomethane": "C=[N+]=[N-].C=C>>C1CCN=N1",
    "urethane": "CN=C=O.CO>>CNC(=O)OC",
    "Strecker": "C=N.C#N>>NCC#N",
    "hemiaminal": "NCO>>C=N.O",
    "thiol-ene": "C[S].C=C>>CSC[CH2]",
    "epichlorohydrin": "[Cl-].ClCC1CO1>>ClCC([O-])CCl",
    "amide hydrolysis": "CC(=O)N.O>>CC(=O)O.N",
    "anhydride": "CC(=O)OC(C)=O.CO>>CC(=O)OC.CC(=O)O",
    "methoxyl and methane": "C[O].C>>CO.[CH3]",
    "peroxyl H shift": "CCCO[O]>>[CH2]CCOO",
    "cyclooctatetraene": "C1=CC=CC=CC=C1>>C1=CC=CC2C1C=C2",
    "norcaradiene": "C1=CC=CC=CC1>>C1=CC2CC2C=C1",
    "Dewar benzene": "C1=CC2C1C=C2>>c1ccccc1",
    "Stevens": "C[N+](C)(C)[CH2-]>>CCN(C)C",
    "Meisenheimer": "C[N+](C)([O-])CC=C>>CN(C)OCC=C",
    "aza-Wittig": "CN=P(C)(C)C.C=O>>CN=C.O=P(C)(C)C",
    "Peterson": "[O-]CC[Si](C)(C)C>>C=C.C[Si](C)(C)[O-]",
    "ene, glyoxylate": "CC(=C)C.O=CC(=O)OC>>CC(=C)CC(O)C(=O)OC",
    "tetrazine and ethene": "c1nncnn1.C=C>>C1CC2N=NC1N=N2",
    "SO3 and water": "O=S(=O)=O.O>>OS(=O)(=O)O",
    "glycine to its zwitterion": "NCC(=O)O>>[NH3+]CC(=O)[O-]",
    "formic acid twice": "[H:1][O:2][CH:3]=[O:4].[H:5][O:6][CH:7]=[O:8]>>[O:2]=[CH:3][O:4][H:5].[O:6]=[CH:7][O:8][H:1]",
    "allyl chloride and OH-": "[OH-].C=CCCl>>OCC=C.[Cl-]",
    "Favorskii, ring closure": "[CH2-]C(=O)CCl>>O=C1CC1.[Cl-]",
    "Simmons-Smith": "[Zn](I)CI.C=C>>C1CC1.I[Zn]I",
    "Grignard and formaldehyde": "C[Mg]Cl.C=O>>CCO[Mg]Cl",
}  # fmt: skip
IN_WATER = ", in water"
WATER = {name + IN_WATER: smiles for name, smiles in IONS.items() if "+" in smiles or "-" in smiles}
SETS = {
    "textbook": REACTIONS, "ions": IONS, "elements": ELEMENTS, "larger": LARGER, "baker": BAKER, "unseen": UNSEEN,
    "water": WATER,
}  # fmt: skip
ALL = REACTIONS | IONS | ELEMENTS | LARGER | BAKER | UNSEEN | WATER


def examine(name: str, weights: str) -> dict:
    """One row: what came of the SMILES and, under "structures", of its two sides."""
    smiles = ALL[name]
    if ">>" not in smiles:
        molecule = embed_molecule(smiles, name)
        x = molecule.conformers[0]
        (rotor,) = rotors(molecule.numbers, x, molecule.bonds)
        sides = (Atoms(molecule.numbers, at) for at in (x, rotor.turned(x, 180.0)))
        return {"name": name, "smiles": smiles, **outcome(*sides, weights=weights)}
    options = {"solvent": "water", "temperature": 298.15} if name in WATER else {}
    row = {"name": name, "smiles": smiles, **outcome(smiles=smiles, weights=weights, **options)}
    if ":1]" in smiles or name not in REACTIONS:  # a reaction into itself: only the numbers tell what reacts
        return row
    reactant, product = (embed_molecule(part, name, seed=5) for part in smiles.split(">>"))
    order = np.random.default_rng(0).permutation(len(product.numbers))
    sides = (
        Atoms(reactant.numbers, reactant.conformers[0]), Atoms(product.numbers[order], product.conformers[0][order])
    )  # fmt: skip
    return row | {"structures": outcome(*sides, charge=reactant.charge, weights=weights)}


def outcome(*sides: Atoms, **options: Any) -> dict:
    """Verdict, barriers, where the best candidate came from, cost: seconds of the processor, whoever shares it."""
    begin = time.process_time()
    try:
        result = find_ts(*sides, **options)
    except CalculatorError as error:
        return {"verdict": "failed", "reason": str(error)}
    best = result.best
    keys = ("verdict", "reason", "stereo", "source", "barrier_forward_kcal", "barrier_reverse_kcal")
    return {
        **{key: getattr(best, key) for key in keys},
        "barrierless_side": result.barrierless_side, "barrierless_kcal": result.barrierless_kcal,
        "barriers_from_lowest_kcal": result.barriers_from_lowest_kcal,
        "unstable": result.unstable, "gradient_calls": result.gradient_calls,
        "cpu_seconds": round(time.process_time() - begin, 1),
        "thermochemistry": result.thermochemistry.summary() if result.thermochemistry else None,
        "mechanism": result.mechanism.summary() if result.mechanism else None,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="tsgen")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument(
        "--only", nargs="+", choices=list(ALL), metavar="NAME", help="reactions; default those of --sets"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "textbook.jsonl"
    done = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    with file.open("a") as log:
        wanted = args.only or [name for key in args.sets for name in SETS[key]]
        for name in (name for name in wanted if name not in done):
            done[name] = examine(name, args.weights)
            log.write(json.dumps(done[name]) + "\n")
            log.flush()
            print(
                name,
                done[name]["verdict"],
                done[name].get("barrier_forward_kcal"),
                done[name].get("structures"),
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    about = {
        "commit": commit.stdout.strip(), "weights": load_model(args.weights).hash, "torch": torch.__version__,
        "machine": f"{platform.processor() or platform.machine()}, 1 thread", "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    target = ROOT / "benchmarks/results/textbook.json"
    report = json.loads(target.read_text())
    for key, names in SETS.items():
        if all(name in done for name in names):
            report[key] = [done[name] for name in names]
            report["about"][key] = about
    write_atomic(target, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

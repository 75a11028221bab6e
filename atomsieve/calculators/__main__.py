"""ASE's command line with the calculator `gfm`.

python -m atomsieve.calculators run gfm copper.xyz -p gfm=gfm/,head=mptrj -f 0.05
"""

from atomsieve.calculators.plugin import register

if __name__ == "__main__":
    from ase.cli.main import main

    register()
    main(prog="python -m atomsieve.calculators")

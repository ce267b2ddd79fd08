%% SPDX-License-Identifier: Apache-2.0
%% A process that stays in the code that it was started in, until it is asked to take the new one.
-module(held).
-export([waits/2]).

waits(Pid, Said) ->
    Pid ! {self(), ready},
    receive
        go -> Pid ! {self(), lists:reverse(said([a, b], Said))}
    end,
    receive
        renew -> ?MODULE:waits(Pid, renewed(Pid))
    end.

said([], Said) -> Said;
said([X | Rest], Said) -> said(Rest, [X | Said]).

renewed(Pid) ->
    Pid ! {self(), renewed},
    [].

%% SPDX-License-Identifier: Apache-2.0
%% Which tail calls may become calls. A call that is followed by a marker and a return needs a frame; a loop made of such
%% calls would grow the stack without end. So it is decided by where a tail call can lead.
-module(scope_mark_tails).
-export([targets/3, target/2, graph/2, closable/4]).
-export_type([target/0, targets/0, graph/0]).

-include("scope_mark.hrl").

%% An entry label of this module, or another module or fun (`away'); a BIF; what never comes back.
-type target() :: non_neg_integer() | away | hands_over | returns | raises.
-type targets() :: tuple().
-opaque graph() :: #{non_neg_integer() => [non_neg_integer() | away]}.

%% Where a tail call of each import leads.
-spec targets([#function{}], binary(), tuple()) -> targets().
targets(Functions, Module, Imports) ->
    Entries = maps:from_list([{{F#function.name, F#function.arity}, F#function.entry} || F <- Functions]),
    Target = fun
        ({M, F, A}) when M =:= Module -> maps:get({F, A}, Entries, away);
        (Import) -> scope_mark_known:call(Import)
    end,
    list_to_tuple([Target(I) || I <- tuple_to_list(Imports)]).

%% Where an instruction leads if it is a tail call.
-spec target(scope_mark_code:instruction(), targets()) -> target() | none.
target({?CALL_ONLY, [_, {5, L}], _}, _) -> L;
target({?CALL_LAST, [_, {5, L}, _], _}, _) -> L;
target({?CALL_EXT_ONLY, [_, {0, I}], _}, Targets) -> import(I, Targets);
target({?CALL_EXT_LAST, [_, {0, I}, _], _}, Targets) -> import(I, Targets);
target({?APPLY_LAST, _, _}, _) -> away;
target(_, _) -> none.

import(I, Targets) when I < tuple_size(Targets) -> element(I + 1, Targets);
import(_, _) -> throw({bad_code, import_index}).

-spec graph([#function{}], targets()) -> graph().
graph(Functions, Targets) ->
    maps:from_list([{F#function.entry, lists:usort(edges(F#function.code, Targets))} || F <- Functions]).

edges([{Op, _, _}, {?DEALLOCATE, _, _}, {?RETURN, _, _} | T], Targets) when Op =:= ?CALL_FUN; Op =:= ?CALL_FUN2 ->
    [away | edges(T, Targets)];
edges([Instruction | T], Targets) ->
    case target(Instruction, Targets) of
        To when is_integer(To); To =:= away -> [To | edges(T, Targets)];
        _ -> edges(T, Targets)
    end;
edges([], _) -> [].

%% Whether the function at From may call To and return itself. `Returns' says of From that it is a callback
%% by whose return its caller goes on: no chain of tail calls leads back to it by way of other modules.
-spec closable(non_neg_integer(), target(), boolean(), graph()) -> boolean().
closable(_, hands_over, _, _) -> false;
closable(_, away, Returns, _) -> Returns;
closable(From, To, Returns, Graph) ->
    Reached = reached([To], Graph, #{}),
    not is_map_key(From, Reached) andalso (Returns orelse not is_map_key(away, Reached)).

reached([], _, Seen) -> Seen;
reached([H | T], Graph, Seen) when is_map_key(H, Seen) -> reached(T, Graph, Seen);
reached([H | T], Graph, Seen) -> reached(maps:get(H, Graph, []) ++ T, Graph, Seen#{H => true}).
